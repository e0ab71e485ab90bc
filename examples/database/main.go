// A database file that only one process can have open, by bbolt. The successor accepts
// while the predecessor still has it, and requests wait until that has drained and
// closed it: for milliseconds, unless one of the predecessor's takes longer.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracehttp"
	"go.etcd.io/bbolt"
)

func main() {
	addr := flag.String("addr", ":8080", "Address to listen on.")
	path := flag.String("db", "example.db", "Path of the database.")
	flag.Parse()

	var db *bbolt.DB
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		err := grace.WaitParent(context.Background())
		if err == nil {
			// The predecessor closes it after its drain: this waits for its lock.
			db, err = bbolt.Open(*path, 0o600, nil)
		}
		if err != nil {
			log.Fatal(err)
		}
	}()
	http.HandleFunc("POST /count", func(w http.ResponseWriter, r *http.Request) {
		<-opened
		slow, _ := time.ParseDuration(r.FormValue("slow"))
		time.Sleep(slow)
		if err := count(db); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprintln(w, os.Getpid())
	})
	if err := gracehttp.Serve(&http.Server{Addr: *addr}); err != nil {
		log.Fatal(err)
	}
	<-opened
	db.Close() // no request needs it any more
}

// count adds one to the number in the database.
func count(db *bbolt.DB) error {
	return db.Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucketIfNotExists([]byte("counts"))
		if err != nil {
			return err
		}
		n, _ := strconv.Atoi(string(bucket.Get([]byte("requests"))))
		return bucket.Put([]byte("requests"), strconv.AppendInt(nil, int64(n)+1, 10))
	})
}
