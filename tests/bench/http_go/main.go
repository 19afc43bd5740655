// The Go twin of albumd for http_bench.c: GET /albums/{id} by net/http, database/sql and lib/pq, with the same
// query, prepared, under the same five seconds, over as many connections.
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

const poolSize = 16

type album struct {
	ID     int64       `json:"id"`
	Title  string      `json:"title"`
	Artist string      `json:"artist"`
	Price  json.Number `json:"price"`
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	db, err := sql.Open("postgres", os.Args[1])
	must(err)
	db.SetMaxOpenConns(poolSize)
	db.SetMaxIdleConns(poolSize)
	byID, err := db.Prepare("SELECT id, title, artist, price FROM album WHERE id = $1")
	must(err)
	http.HandleFunc("/albums/", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.ParseInt(strings.TrimPrefix(r.URL.Path, "/albums/"), 10, 64)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		var a album
		err = byID.QueryRowContext(ctx, id).Scan(&a.ID, &a.Title, &a.Artist, (*string)(&a.Price))
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
