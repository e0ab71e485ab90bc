// The chat before connections could move, as far as a restart can tell: it greets.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracenet"
)

func main() {
	addr := flag.String("addr", ":8080", "Address to listen on.")
	flag.Parse()
	var n gracenet.Net
	inherited, err := n.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	l := grace.NewListener(inherited.(grace.Listener))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "the old version")
			c.Close()
		}
	}()
	if err := grace.CloseParent(); err != nil {
		log.Fatal(err)
	}
	log.Printf("serving %v with pid %d", l.Addr(), os.Getpid())
	if err := grace.Wait([]grace.Listener{l}); err != nil {
		log.Fatal(err)
	}
}
