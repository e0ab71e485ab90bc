//go:build unix

package accept

import (
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestBacklogReturnsWhatNobodyHasAccepted(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = filepath.Join(t.TempDir(), "socket")
			}
			l, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			g := New(l)
			waiting := acceptOne(g)
			g.Pause()

			const clients = 5
			for i := range clients {
				c := dial(t, l)
				if _, err := c.Write([]byte{byte(i)}); err != nil {
					t.Fatal(err)
				}
			}
			conns := g.Backlog()
			if len(conns) != clients {
				t.Fatalf("%d connections, want %d", len(conns), clients)
			}
			for i, c := range conns {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				var b [1]byte
				if _, err := io.ReadFull(c, b[:]); err != nil || b[0] != byte(i) {
					t.Errorf("connection %d of the backlog: read %d, %v", i, b[0], err)
				}
				raw, err := c.(syscall.Conn).SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				raw.Control(func(fd uintptr) {
					flags, _, _ := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFD, 0)
					if flags&syscall.FD_CLOEXEC == 0 {
						t.Error("a connection of the backlog is not close-on-exec")
					}
				})
			}
			if more := g.Backlog(); len(more) != 0 {
				t.Errorf("the empty backlog has %d connections", len(more))
			}

			// The listener goes on.
			g.Resume()
			dial(t, l)
			if a := receive(t, "Accept", waiting); a.err != nil {
				t.Error(a.err)
			}
		})
	}
}

func TestBacklogOfAClosedListenerIsEmpty(t *testing.T) {
	g, _ := listen(t)
	g.Close()
	if conns := g.Backlog(); len(conns) != 0 {
		t.Errorf("%d connections", len(conns))
	}
	if conns := New(plainListener{newFake()}).Backlog(); len(conns) != 0 {
		t.Errorf("%d connections of a listener without a descriptor", len(conns))
	}
}

// A program that shares the socket may have made it blocking, for us too.
func TestBacklogOfABlockingSocketReturns(t *testing.T) {
	g, l := listen(t)
	g.Pause()
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	setNonblock := func(nonblocking bool) {
		raw.Control(func(fd uintptr) {
			if err := syscall.SetNonblock(int(fd), nonblocking); err != nil {
				t.Error(err)
			}
		})
	}
	setNonblock(false)
	dial(t, l)

	conns := make(chan []net.Conn, 1)
	go func() { conns <- g.Backlog() }()
	select {
	case conns := <-conns:
		if len(conns) != 1 {
			t.Errorf("%d connections, want 1", len(conns))
		}
		for _, c := range conns {
			c.Close()
		}
	case <-time.After(patience):
		t.Errorf("Backlog waits for connections")
		setNonblock(true)
		dial(t, l) // ends the system call
		<-conns
	}
}

func TestBacklogConnectionsKnowTheirClient(t *testing.T) {
	g, l := listen(t)
	g.Pause()
	client := dial(t, l).(*net.TCPConn)
	if _, err := client.Write([]byte("request")); err != nil {
		t.Fatal(err)
	}
	client.SetLinger(0)
	client.Close() // with a reset: the peer cannot be asked for any more
	for _, c := range g.Backlog() {
		defer c.Close()
		if c.RemoteAddr() == nil {
			t.Error("RemoteAddr is nil, which a hook such as ConnContext does not expect")
		}
	}
}
