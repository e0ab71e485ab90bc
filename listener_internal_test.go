//go:build unix

package grace

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
)

// A limited listener accepts no more than one connection at a time, before it asks the
// kernel for the next.
type limited struct {
	*net.TCPListener
	free   chan struct{}
	waits  chan struct{} // closed when Accept waits for free, the first time
	waited sync.Once
}

func (l *limited) Accept() (net.Conn, error) {
	l.waited.Do(func() { close(l.waits) })
	<-l.free
	return l.TCPListener.Accept()
}

func listenTCP(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// What a listener waits for in its Accept may take longer than a drain: neither its
// outcome nor its end wait for that.
func TestDrainDoesNotWaitForAnAcceptThatCannotBeCalledBack(t *testing.T) {
	t.Parallel()
	inner := &limited{TCPListener: listenTCP(t), free: make(chan struct{}), waits: make(chan struct{})}
	l := NewListener(inner)
	go l.Accept()
	<-inner.waits
	paused, drained := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		how := handoff.Drain{To: new(handoff.Successor), OnPause: func() { close(paused) }}
		drained <- l.(drainer).Drain(ctx, how)
	}()
	select {
	case <-paused:
	case <-time.After(10 * time.Second):
		t.Fatal("it is not paused")
	}
	cancel()
	select {
	case err := <-drained:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Drain: %v, want %v", err, context.Canceled)
		}
	case <-time.After(10 * time.Second):
		t.Error("the drain does not end with its context")
	}
	if !l.(drainer).Resume() {
		t.Error("it cannot be resumed")
	}
}

// A badlyClosing listener fails to close.
type badlyClosing struct{ *net.TCPListener }

var errBadly = errors.New("closed badly")

func (l *badlyClosing) Close() error { l.TCPListener.Close(); return errBadly }

// No connection is dropped because its listener could not be closed.
func TestDrainWaitsForConnectionsThoughCloseFails(t *testing.T) {
	t.Parallel()
	l := NewListener(&badlyClosing{listenTCP(t)})
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	drained := make(chan error, 1)
	go func() { drained <- l.(drainer).Drain(context.Background(), handoff.Drain{}) }()
	select {
	case err := <-drained:
		t.Fatalf("Drain returned %v with a connection open", err)
	case <-time.After(50 * time.Millisecond):
	}
	c.Close()
	if err := <-drained; !errors.Is(err, errBadly) {
		t.Errorf("Drain: %v, want %v", err, errBadly)
	}
}

// The program hears of it by reading, as ever, and forgets the client.
func TestMovedConnectionThatItsClientHasResetIsHandedOver(t *testing.T) {
	t.Parallel()
	l := listenTCP(t)
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	here, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	client.(*net.TCPConn).SetLinger(0)
	client.Close()
	here.Read(make([]byte, 1)) // until it has arrived
	f, err := here.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Skip(err) // on other systems it cannot be moved
	}
	states := make(chan string, 1)
	p := &Process{Logger: log.New(io.Discard, "", 0), OnMove: func(c net.Conn, state []byte) {
		defer c.Close()
		_ = c.RemoteAddr().String()
		states <- string(state)
	}}
	p.receiveMoved(c, []byte("alice"))
	select {
	case state := <-states:
		if state != "alice" {
			t.Errorf("OnMove gets %q", state)
		}
	case <-time.After(10 * time.Second):
		t.Error("OnMove does not get over its address")
	}
}
