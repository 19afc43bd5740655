// The Go twin of ctx_bench.c: the same measures by the same names, one line each: "name<tab>ns".
package main

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// Rounds are long enough for the garbage collector to take part in them.
const (
	rounds  = 15
	threads = 2
)

var sink any

func best(measure func() time.Duration, ops int) float64 {
	least := time.Duration(1<<63 - 1)
	for i := 0; i < rounds; i++ {
		if took := measure(); took < least {
			least = took
		}
	}
	return float64(least.Nanoseconds()) / float64(ops)
}

func report(name string, ops int, body func(n int)) {
	fmt.Printf("%s\t%.2f\n", name, best(func() time.Duration {
		begin := time.Now()
		body(ops)
		return time.Since(begin)
	}, ops))
}

// Both threads do half; the time is that of the whole, as testing's RunParallel gives it.
func shared(body func(n int)) func(n int) {
	return func(n int) {
		var wg sync.WaitGroup
		wg.Add(threads)
		for i := 0; i < threads; i++ {
			go func() {
				body(n / threads)
				wg.Done()
			}()
		}
		wg.Wait()
	}
}

func cancelParent(children int) time.Duration {
	parent, cancel := context.WithCancel(context.Background())
	ends := make([]context.CancelFunc, children)
	for i := range ends {
		_, ends[i] = context.WithCancel(parent)
	}
	begin := time.Now()
	cancel()
	took := time.Since(begin)
	for _, end := range ends {
		end()
	}
	return took
}

type key int

func valueAt(depth int) func(n int) {
	ctx := context.WithValue(context.Background(), key(0), "value")
	for i := 1; i < depth; i++ {
		ctx = context.WithValue(ctx, key(i), "another")
	}
	return func(n int) {
		for i := 0; i < n; i++ {
			sink = ctx.Value(key(0))
		}
	}
}

func main() {
	runtime.GOMAXPROCS(threads)
	parent, cancel := context.WithCancel(context.Background())
	defer cancel()

	withTimeout := func(n int) {
		for i := 0; i < n; i++ {
			_, end := context.WithTimeout(parent, 5*time.Second)
			end()
		}
	}
	err := func(n int) {
		for i := 0; i < n; i++ {
			if parent.Err() != nil {
				panic("done")
			}
		}
	}

	report("with_cancel", 100000, func(n int) {
		for i := 0; i < n; i++ {
			_, end := context.WithCancel(context.Background())
			end()
		}
	})
	report("with_cancel_child", 100000, func(n int) {
		for i := 0; i < n; i++ {
			_, end := context.WithCancel(parent)
			end()
		}
	})
	report("with_timeout", 50000, func(n int) {
		for i := 0; i < n; i++ {
			_, end := context.WithTimeout(context.Background(), 5*time.Second)
			end()
		}
	})
	report("with_timeout_child", 50000, withTimeout)
	report("with_timeout_shared", 50000, shared(withTimeout))
	report("request_tree", 30000, func(n int) {
		for i := 0; i < n; i++ {
			request, endRequest := context.WithCancel(context.Background())
			_, endQuery := context.WithTimeout(request, 5*time.Second)
			endQuery()
			endRequest()
		}
	})
	report("err", 2000000, err)
	report("err_shared", 2000000, shared(err))
	report("value_1", 2000000, valueAt(1))
	report("value_8", 300000, valueAt(8))
	fmt.Printf("cancel_1000\t%.2f\n", best(func() time.Duration {
		least := time.Duration(1<<63 - 1)
		for i := 0; i < 5; i++ {
			if took := cancelParent(1000); took < least {
				least = took
			}
		}
		return least
	}, 1))
}
