//go:build unix

package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracenet"
	"github.com/facebookgo/grace/internal/testserver/kit"
)

// datagrams answers each datagram with itself and the process id, in a goroutine that
// takes a while, and ends as gracenet's ListenPacket says; with the fault "careless" it
// just closes the socket.
func datagrams(f *kit.Flags) error {
	careless := f.Faulty("careless")
	var n gracenet.Net
	p, err := n.ListenPacket("udp", f.Listen[0])
	if err != nil {
		return err
	}
	var handlers sync.WaitGroup
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 1<<16)
		for {
			size, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			question := string(b[:size])
			handlers.Add(1)
			go func() {
				defer handlers.Done()
				time.Sleep(20 * time.Millisecond)
				p.WriteTo(fmt.Appendf(nil, "%s %d", question, os.Getpid()), from)
			}()
		}
	}()
	if err := grace.CloseParent(); err != nil {
		return err
	}
	kit.Ready(p.LocalAddr())
	if err := grace.Wait(nil); err != nil {
		return err
	}
	if !careless {
		p.SetReadDeadline(time.Now())
		<-read
		handlers.Wait()
	}
	return p.Close()
}
