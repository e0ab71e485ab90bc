//go:build unix

package gracenet_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracenet"
)

func handle(c net.Conn) {
	defer c.Close()
	io.Copy(c, c)
}

// A server with a restart that the process manager, or a person, asks for with
// SIGUSR2, and a stop by SIGTERM. grace.Wait looks after both.
func Example() {
	var n gracenet.Net
	l, err := n.Listen("tcp", "127.0.0.1:0") // keeps its port over restarts
	if err != nil {
		log.Fatal(err)
	}
	counted := grace.NewListener(l.(grace.Listener))
	go func() {
		for {
			c, err := counted.Accept()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
	if err := grace.CloseParent(); err != nil { // we serve: the predecessor may end
		log.Fatal(err)
	}
	if err := grace.Wait([]grace.Listener{counted}); err != nil {
		log.Fatal(err)
	}
}

// A program may have a signal loop of its own. Its successor's word of being
// ready comes as SIGTERM.
func ExampleNet_StartProcess() {
	var n gracenet.Net
	l, err := n.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	signals := make(chan os.Signal, 10)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go handle(c)
		}
	}()
	if err := grace.CloseParent(); err != nil {
		log.Fatal(err)
	}
	for sig := range signals {
		if sig == syscall.SIGTERM {
			break
		}
		pid, err := n.StartProcess()
		if err != nil {
			log.Print(err) // and serve on
			continue
		}
		log.Printf("started pid %d", pid)
	}
	l.Close()
}

func ExampleNet_Listen() {
	var n gracenet.Net
	l, err := n.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			handle(c)
		}
	}()

	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "hello")
	answer := make([]byte, 5)
	if _, err := io.ReadFull(c, answer); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", answer)
	// Output: hello
}

// A UDP server whose handlers run in goroutines. No datagram is lost in a restart:
// each is read by one of the two processes, and whoever has read it answers it.
func ExampleNet_ListenPacket() {
	var n gracenet.Net
	p, err := n.ListenPacket("udp", "127.0.0.1:0")
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
				p.WriteTo(question, from)
			}()
		}
	}()
	if err := grace.CloseParent(); err != nil {
		log.Fatal(err)
	}
	if err := grace.Wait(nil); err != nil { // until a successor reads too, or a stop
		log.Fatal(err)
	}
	p.SetReadDeadline(time.Now()) // what is not read yet is the successor's
	<-read
	handlers.Wait()
	p.Close()
}

// A log file that every generation writes to, though only the first has opened
// it.
func ExampleNet_File() {
	var n gracenet.Net
	f, err := n.File("access log")
	if errors.Is(err, fs.ErrNotExist) {
		path := filepath.Join(os.TempDir(), "gracenet-example.log")
		if f, err = os.Create(path); err != nil {
			log.Fatal(err)
		}
		defer os.Remove(path)
		err = n.AddFile("access log", f)
	}
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()

	inherited, err := n.File("access log") // as in a successor
	if err != nil {
		log.Fatal(err)
	}
	defer inherited.Close()
	fmt.Fprint(inherited, "one line")
	b := make([]byte, 8)
	if _, err := f.ReadAt(b, 0); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", b)
	// Output: one line
}
