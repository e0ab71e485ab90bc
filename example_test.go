package grace_test

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"time"

	"github.com/facebookgo/grace"
)

// A server of lines: the whole of what a program has to do. Its sockets are
// inherited if there is a predecessor, and opened otherwise.
func Example() {
	process := grace.Process{TermTimeout: time.Minute}

	listeners, err := process.Inherit()
	if err == grace.ErrNotInheriting {
		var l net.Listener
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
			listeners = []grace.Listener{grace.NewListener(l.(*net.TCPListener))}
		}
	}
	if err != nil {
		log.Fatal(err)
	}

	for _, l := range listeners {
		go func() {
			for {
				conn, err := l.Accept()
				if err == grace.ErrAlreadyClosed {
					return
				}
				if err != nil {
					log.Print(err)
					continue
				}
				go func() {
					defer conn.Close() // which is what Wait waits for
					io.Copy(conn, conn)
				}()
			}
		}()
	}

	// We serve: a predecessor may go.
	if err := process.CloseParent(); err != nil {
		log.Fatal(err)
	}

	// In a program, this comes next and is the end of main:
	//
	//	err = process.Wait(listeners)

	conn, err := net.Dial("tcp", listeners[0].Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintln(conn, "hello")
	line, _ := bufio.NewReader(conn).ReadString('\n')
	fmt.Print(line)
	conn.Close()
	fmt.Println(listeners[0].Close())

	// Output:
	// hello
	// <nil>
}

func ExampleNewListener() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	listener := grace.NewListener(l.(*net.TCPListener))

	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	conn, err := listener.Accept()
	if err != nil {
		log.Fatal(err)
	}

	go func() {
		// Close has begun: nobody is accepted any more.
		_, err := listener.Accept()
		fmt.Println(err == grace.ErrAlreadyClosed)
		fmt.Println("closing the last connection")
		conn.Close()
	}()
	listener.Close()
	fmt.Println("the listener is closed")

	// Output:
	// true
	// closing the last connection
	// the listener is closed
}

// Restarting is possible by other means than SIGUSR2, too.
func ExampleProcess_Restart() {
	process := grace.Process{
		StartTimeout: 10 * time.Second,
		PreStart: func() error {
			return fmt.Errorf("the new configuration has a mistake in line 7")
		},
	}
	err := process.Restart(nil)
	fmt.Println("still serving:", err)

	// Output:
	// still serving: before the start: the new configuration has a mistake in line 7
}

func ExampleInherit() {
	listeners, err := grace.Inherit()
	fmt.Println(len(listeners), err == grace.ErrNotInheriting)

	// Output:
	// 0 true
}
