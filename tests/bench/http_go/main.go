// The Go twin of albumd for http_bench.c and abort_bench.c: GET /albums/{id} by net/http and database/sql, with the
// same query under the same five seconds, over as many connections.
//
//	http_go DRIVER URL POOL_SIZE DEADLINE
//
// DRIVER is "lib/pq", prepared as albumd's are; "lib/pq, unprepared"; or "pgx", which prepares by itself. ?delay=30s
// makes the query that slow.
package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	_ "github.com/lib/pq"
)

const (
	byID     = "SELECT id, title, artist, price FROM album WHERE id = $1"
	byIDLate = byID + " AND (SELECT pg_sleep($2)) IS NOT NULL"
)

type album struct {
	ID     int64       `json:"id"`
	Title  string      `json:"title"`
	Artist string      `json:"artist"`
	Price  json.Number `json:"price"`
}

type query func(ctx context.Context, args ...any) *sql.Row

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func open(driver, url string, size int) *sql.DB {
	name := "postgres"
	if driver == "pgx" {
		name = "pgx"
	}
	db, err := sql.Open(name, url)
	must(err)
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	return db
}

func newQuery(db *sql.DB, driver, text string) query {
	if driver != "lib/pq" {
		return func(ctx context.Context, args ...any) *sql.Row { return db.QueryRowContext(ctx, text, args...) }
	}
	statement, err := db.Prepare(text)
	must(err)
	return statement.QueryRowContext
}

func main() {
	driver, url := os.Args[1], os.Args[2]
	size, err := strconv.Atoi(os.Args[3])
	must(err)
	deadline, err := time.ParseDuration(os.Args[4])
	must(err)
	db := open(driver, url, size)
	prompt, late := newQuery(db, driver, byID), newQuery(db, driver, byIDLate)
	http.HandleFunc("/albums/", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.ParseInt(strings.TrimPrefix(r.URL.Path, "/albums/"), 10, 64)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), deadline)
		defer cancel()
		var row *sql.Row
		if r.URL.RawQuery == "" {
			row = prompt(ctx, id)
		} else if delay, err := time.ParseDuration(r.URL.Query().Get("delay")); err == nil {
			row = late(ctx, id, delay.Seconds())
		} else {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		var a album
		err = row.Scan(&a.ID, &a.Title, &a.Artist, (*string)(&a.Price))
		if err == sql.ErrNoRows {
			http.NotFound(w, r)
			return
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		body, err := json.Marshal(&a)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(body)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	fmt.Printf("listening on http://%s\n", listener.Addr())
	must(http.Serve(listener, nil))
}
