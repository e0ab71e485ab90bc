// A version of the chat that crashes when it has taken the first connections.
package main

import (
	"flag"
	"log"
	"net"
	"os"
	"syscall"

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
	p := grace.Process{OnMove: func(net.Conn, []byte) {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}}
	if err := p.CloseParent(); err != nil {
		log.Fatal(err)
	}
	log.Printf("serving %v with pid %d", l.Addr(), os.Getpid())
	if err := p.Wait([]grace.Listener{l}); err != nil {
		log.Fatal(err)
	}
}
