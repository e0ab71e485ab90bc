// A UDP server. A restart loses no datagram: each is read by one of the two processes,
// and whoever has read it answers it.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracenet"
)

func main() {
	addr := flag.String("addr", ":8080", "Address to listen on.")
	flag.Parse()

	var n gracenet.Net
	p, err := n.ListenPacket("udp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	var handlers sync.WaitGroup
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 1<<16)
		for {
			size, from, err := p.ReadFrom(b)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			if err != nil {
				log.Print(err)
				continue
			}
			question := bytes.Clone(b[:size])
			handlers.Add(1)
			go func() {
				defer handlers.Done()
				time.Sleep(10 * time.Millisecond) // ask a database
				p.WriteTo(fmt.Appendf(nil, "%d %s", os.Getpid(), question), from)
			}()
		}
	}()
	if err := grace.CloseParent(); err != nil {
		log.Fatal(err)
	}
	log.Printf("serving %v with pid %d", p.LocalAddr(), os.Getpid())
	if err := grace.Wait(nil); err != nil {
		log.Fatal(err)
	}
	p.SetReadDeadline(time.Now()) // what is not read yet is the successor's
	<-read
	handlers.Wait()
	p.Close()
}
