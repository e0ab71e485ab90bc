//go:build unix

package gracehttp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/testserver/driver"
)

// patience is how long anything may take in a test.
const patience = 30 * time.Second

// A generation is one server as a process of the chain has it. Two of them in
// the test's own process let a connection move at a moment of the test's choice.
type generation struct {
	*server
	addr     string
	served   chan error // what Serve has returned
	accepted chan bool  // one for each connection in StateNew
	closed   chan bool  // and in StateClosed
}

// serveGeneration serves srv on a new socket, until the test's end.
func serveGeneration(t *testing.T, network string, srv *http.Server, idleGrace time.Duration) *generation {
	t.Helper()
	g := newGeneration(t, network, srv, idleGrace)
	t.Cleanup(g.cut)
	return g
}

func newGeneration(t testing.TB, network string, srv *http.Server, idleGrace time.Duration) *generation {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = t.TempDir() + "/socket"
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return newGenerationOn(t, l, srv, idleGrace)
}

func newGenerationOn(t testing.TB, l net.Listener, srv *http.Server, idleGrace time.Duration) *generation {
	t.Helper()
	a := &app{idleGrace: idleGrace}
	a.process.Logger = testLog(t)
	if srv.ErrorLog == nil {
		srv.ErrorLog = a.process.Logger
	}
	g := &generation{
		addr:     l.Addr().String(),
		served:   make(chan error, 1),
		accepted: make(chan bool, 1000),
		closed:   make(chan bool, 1000),
	}
	hook := srv.ConnState
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			g.accepted <- true
		case http.StateClosed:
			g.closed <- true
		}
		if hook != nil {
			hook(c, state)
		}
	}
	g.server = newServer(a, srv, l, l.Addr().Network()+" "+l.Addr().String())
	a.servers = append(a.servers, g.server)
	accepting := make(chan struct{})
	go func() { g.served <- g.server.Serve(func() { close(accepting) }) }()
	within(t, accepting, "the server to accept")
	g.server.Resume()
	return g
}

// testLog returns a logger whose lines are shown if the test fails.
func testLog(t testing.TB) *log.Logger {
	lines := &lockedBuffer{}
	t.Cleanup(func() {
		if t.Failed() && lines.String() != "" {
			t.Logf("logged:\n%s", lines)
		}
	})
	return log.New(lines, "", log.Lmicroseconds)
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// moveTo begins a drain in which idle connections go to next, by the way that a
// batch from another process takes: as copies of their descriptors.
func (g *generation) moveTo(t *testing.T, next *generation) *drain {
	t.Helper()
	return g.drainWith(t, func(c *conn) bool {
		dup, err := duplicate(c.raw)
		if err != nil {
			t.Errorf("copying a connection's descriptor: %v", err)
			return false
		}
		next.take([]*os.File{dup}, []handoff.Waiting{c.waits()})
		return true
	})
}

// drainWith begins a drain in which decide has the connections that are offered
// to the successor.
func (g *generation) drainWith(t *testing.T, decide func(*conn) bool) *drain {
	t.Helper()
	d := &drain{server: g.server, begin: time.Now(), middle: time.Now().Add(time.Hour)}
	d.newPace(true)
	d.mover = newMover(nil)
	stop := make(chan struct{})
	var stopped sync.WaitGroup
	stopped.Add(1)
	go func() {
		defer stopped.Done()
		for {
			select {
			case o := <-d.mover.offers:
				o.taken <- decide(o.conn)
			case <-stop:
				close(d.mover.done)
				return
			}
		}
	}()
	t.Cleanup(func() {
		g.draining.Store(nil)
		close(stop)
		stopped.Wait()
	})
	g.listener.Pause()
	g.draining.Store(d)
	d.wakeAll()
	return d
}

// slowHandler answers "done". A request for /slow says before that it has begun, and waits
// for its release.
func slowHandler() (handler http.Handler, begun, release chan bool) {
	begun, release = make(chan bool), make(chan bool)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			begun <- true
			<-release
		}
		fmt.Fprint(w, "done")
	}), begun, release
}

// wakeAndLook makes every idle connection look whether a drain wants its end, and
// waits until all have.
func (g *generation) wakeAndLook(t *testing.T, d *drain) {
	t.Helper()
	entries := g.listener.Entries()
	d.wakeAll()
	driver.Eventually(t, "the connections to look", func() bool {
		return !slices.ContainsFunc(entries, func(e *accept.Entry) bool {
			c := e.Conn.(*conn)
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.is(woken) && !c.gone && c.kind == accept.HTTP1
		})
	})
}

// waitEmpty waits until no connection is left.
func (g *generation) waitEmpty(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := g.listener.Wait(ctx); err != nil {
		t.Fatalf("waited %v for the connections to end; %+v are left", patience, g.Count())
	}
}

// duplicate copies a connection's descriptor, as the control socket does.
func duplicate(c syscall.Conn) (f *os.File, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var dup int
	ctlErr := raw.Control(func(fd uintptr) {
		// A process that another test starts would keep it open.
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
		if dup, err = syscall.Dup(int(fd)); err == nil {
			syscall.CloseOnExec(dup)
			f = os.NewFile(uintptr(dup), "")
		}
	})
	return f, errors.Join(ctlErr, err)
}

// A tap tells the test of each Read: what it asks for, and what it brings.
type tap struct {
	rawConn
	asks   chan int // nil: not told
	brings chan int
}

func (t *tap) Read(b []byte) (int, error) {
	if t.asks != nil {
		t.asks <- len(b)
	}
	n, err := t.rawConn.Read(b)
	if t.brings != nil && n > 0 {
		t.brings <- n
	}
	return n, err
}

// on taps a connection of which nothing has been read.
func (t *tap) on(c net.Conn) {
	core := coreOf(c)
	t.rawConn, core.raw = core.raw, t
}

// A client writes requests byte by byte and reads answers.
type client struct {
	t *testing.T
	net.Conn
	answers *bufio.Reader
}

func dial(t *testing.T, g *generation) *client {
	t.Helper()
	c, err := net.Dial(g.Addr().Network(), g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return newClient(t, c)
}

func newClient(t *testing.T, c net.Conn) *client {
	c.SetDeadline(time.Now().Add(patience))
	return &client{t, c, bufio.NewReader(c)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Fatalf("sending %.40q: %v", s, err)
	}
}

// answer reads an answer with its whole body.
func (c *client) answer() (*http.Response, string) {
	c.t.Helper()
	resp, body, err := c.tryAnswer()
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	return resp, body
}

func (c *client) tryAnswer() (*http.Response, string, error) {
	resp, err := http.ReadResponse(c.answers, nil)
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// expect reads an answer, which must have this body.
func (c *client) expect(body string) *http.Response {
	c.t.Helper()
	resp, got := c.answer()
	if resp.StatusCode != http.StatusOK || got != body {
		c.t.Fatalf("answer: %s, %q; want 200 and %q", resp.Status, got, body)
	}
	return resp
}

// ask sends a request, and expects the answer of the handler named("server").
func (c *client) ask() *http.Response {
	c.t.Helper()
	c.send(get)
	return c.expect("server / 0")
}

// expectEnd reads the end of the connection, which must not be a reset.
func (c *client) expectEnd() {
	c.t.Helper()
	if b, err := c.answers.ReadByte(); err != io.EOF {
		c.t.Fatalf("the connection has %q, %v; want its end", b, err)
	}
}

// ends waits for the drain's end, which must be that of a drain that is complete.
func ends(t testing.TB, drained <-chan error) {
	t.Helper()
	if err := within(t, drained, "the drain's end"); err != nil {
		t.Errorf("Drain: %v", err)
	}
}

// within fails the test if what does not happen in time.
func within[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited %v for %s", patience, what)
		panic("unreachable")
	}
}

// named answers with a name, the path, and the size of the request's body.
func named(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil && !errors.Is(err, io.EOF) {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%s %s %d", name, r.URL.Path, n)
	})
}
