//go:build unix

package accept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Whoever has been told by the kernel that it is connected is served, also by a loop that
// is in Accept already.
func TestCloseLastBringsWhatWaitsInTheKernel(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, alone := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s alone=%v", network, alone), func(t *testing.T) {
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
				if err := g.CloseLast(alone); err != nil {
					t.Error(err)
				}
				if c, err := net.Dial(network, l.Addr().String()); err == nil {
					c.Close()
					t.Error("somebody can connect after the last")
				}
				for i := range clients {
					if i > 0 {
						waiting = acceptOne(g)
					}
					a := receive(t, "Accept", waiting)
					if a.err != nil {
						t.Fatal(a.err)
					}
					defer a.conn.Close()
					a.conn.SetDeadline(time.Now().Add(patience))
					var b [1]byte
					if _, err := io.ReadFull(a.conn, b[:]); err != nil || b[0] != byte(i) {
						t.Errorf("connection %d of the backlog: read %d, %v", i, b[0], err)
					}
					raw, err := a.conn.(syscall.Conn).SyscallConn()
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
				if a := receive(t, "Accept", acceptOne(g)); !errors.Is(a.err, net.ErrClosed) {
					t.Errorf("Accept after the last: %v, %v", a.conn, a.err)
				}
			})
		}
	}
}

// Nothing waits for ever for a loop that has ended.
func TestCloseLastDropsWhatNobodyAccepts(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for a second")
	}
	t.Parallel()
	g, l := listen(t)
	client := dial(t, l)
	g.CloseLast(true)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.Wait(ctx); err == nil {
		t.Error("Wait does not wait for the connection that nobody has accepted yet")
	}
	within(t, "Wait", func() { g.Wait(context.Background()) })
	client.SetDeadline(time.Now().Add(patience))
	if n, err := client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the client reads %d, %v, want the end", n, err)
	}
}

func TestCloseLastOfAClosedListener(t *testing.T) {
	g, _ := listen(t)
	g.Close()
	fake := New(plainListener{newFake()})
	for _, g := range []*Listener{g, fake} {
		if err := g.CloseLast(true); err != nil {
			t.Error(err)
		}
		if a := receive(t, "Accept", acceptOne(g)); !errors.Is(a.err, net.ErrClosed) {
			t.Errorf("Accept: %v, %v", a.conn, a.err)
		}
	}
}

// A program that shares the socket may have made it blocking, for us too.
func TestCloseLastOfABlockingSocketReturns(t *testing.T) {
	g, l := listen(t)
	g.Pause()
	raw, err := l.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if err := syscall.SetNonblock(int(fd), false); err != nil {
			t.Error(err)
		}
	})
	dial(t, l)
	within(t, "CloseLast", func() { g.CloseLast(false) })
	if a := receive(t, "Accept", acceptOne(g)); a.err != nil {
		t.Error(a.err)
	} else {
		a.conn.Close()
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
	g.CloseLast(true)
	for {
		a := receive(t, "Accept", acceptOne(g))
		if a.err != nil {
			return
		}
		defer a.conn.Close()
		if a.conn.RemoteAddr() == nil {
			t.Error("RemoteAddr is nil, which a hook such as ConnContext does not expect")
		}
	}
}

// A hook may close what a stop closes at the same time.
func TestCloseLastSideBySide(t *testing.T) {
	_, l := listen(t)
	slow := &slowListener{TCPListener: l, closing: make(chan bool), release: make(chan bool)}
	g := New(slow)
	dial(t, l)
	first := make(chan error, 1)
	go func() { first <- g.CloseLast(false) }()
	receive(t, "the first to close", slow.closing)
	second := make(chan error, 1)
	go func() { second <- g.CloseLast(false) }()
	receive(t, "the second", second)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if g.Wait(ended) == nil {
		t.Error("Wait has not waited for what the first is about to bring")
	}
	waiting := acceptOne(g)
	close(slow.release)
	if a := receive(t, "Accept", waiting); a.err != nil {
		t.Error(a.err)
	} else {
		a.conn.Close()
	}
	if err := receive(t, "the first", first); err != nil {
		t.Error(err)
	}
}

// A slowListener takes its time to close.
type slowListener struct {
	*net.TCPListener
	closing, release chan bool
}

func (l *slowListener) Close() error {
	l.closing <- true
	<-l.release
	return l.TCPListener.Close()
}

// Some serve one connection after the other.
func TestCloseLastKeepsWhatALoopComesBackFor(t *testing.T) {
	g, l := listen(t)
	dial(t, l)
	dial(t, l)
	g.CloseLast(true)
	c, err := g.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e := new(Entry)
	g.Admit(e)
	g.dropBacklog(true) // the time is over
	g.Remove(e)
	g.dropBacklog(true) // again, before the loop has come back
	if a := receive(t, "Accept", acceptOne(g)); a.err != nil {
		t.Error(a.err)
	} else {
		a.conn.Close()
	}
}
