//go:build unix

package gracehttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/testserver/driver"
)

func TestConnectionsMove(t *testing.T) {
	t.Parallel()
	driver.Each(t, []string{"tcp", "unix"}, func(t *testing.T, network string) {
		begun, release := make(chan bool), make(chan bool)
		a := serveGeneration(t, network, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				begun <- true
				<-release
				if err := r.Context().Err(); err != nil {
					t.Errorf("the context of a request that is being handled: %v", err)
				}
			}
			named("predecessor").ServeHTTP(w, r)
		})}, time.Hour)
		b := serveGeneration(t, network, &http.Server{Handler: named("successor")}, time.Hour)

		fresh, idle, busy := connect(t, a), connect(t, a), connect(t, a)
		idle.send(get)
		idle.expect("predecessor / 0")
		busy.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
		within(t, begun, "the slow request")
		a.moveTo(t, b)
		// At once, while the busy one is busy.
		within(t, a.closed, "a connection's end in the predecessor")
		within(t, a.closed, "a connection's end in the predecessor")
		for _, c := range []*client{fresh, idle} {
			c.send(get)
			c.expect("successor / 0")
		}
		close(release)
		if resp := busy.expect("predecessor /slow 0"); resp.Close {
			t.Error("the answer of a connection that will move says Connection: close")
		}
		a.waitEmpty(t)
		for _, c := range []*client{fresh, idle, busy} {
			for range 2 {
				c.send(get)
				c.expect("successor / 0")
			}
		}
		if c := b.Count(); c.Open != 3 || c.HTTP2 != 0 || c.Hijacked != 0 {
			t.Errorf("the successor has %+v open, want 3 connections of HTTP/1", c)
		}
	})
}

// A connection may move on from a process that has it from its predecessor.
func TestConnectionsMoveOn(t *testing.T) {
	t.Parallel()
	var chain []*generation
	for i := range 4 {
		chain = append(chain, serveGeneration(t, "tcp", &http.Server{Handler: named(fmt.Sprint(i))}, time.Hour))
	}
	used, fresh := connect(t, chain[0]), connect(t, chain[0])
	used.send(get)
	used.expect("0 / 0")
	// All of them drain at a time, in any order.
	chain[1].moveTo(t, chain[2])
	chain[0].moveTo(t, chain[1])
	chain[2].moveTo(t, chain[3])
	for _, c := range []*client{used, fresh} {
		for {
			c.send(get)
			if _, body := c.answer(); body == "3 / 0" {
				break
			}
		}
	}
	for _, g := range chain[:3] {
		g.waitEmpty(t)
	}
}

// To the successor's program a moved connection is a new one.
func TestSuccessorKnowsMovedConnections(t *testing.T) {
	t.Parallel()
	driver.Each(t, []string{"tcp", "unix"}, func(t *testing.T, network string) {
		a := serveGeneration(t, network, &http.Server{Handler: named("predecessor")}, time.Hour)
		states := make(chan string, 100)
		srv := &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "%v %v %s %s", r.Context().Value(contextKey{}), r.Context().Value(http.LocalAddrContextKey), r.RemoteAddr, r.URL.Path)
			}),
			ConnState: func(c net.Conn, state http.ConnState) {
				states <- fmt.Sprintf("%s %v", c.RemoteAddr(), state)
			},
			ConnContext: func(ctx context.Context, c net.Conn) context.Context {
				return context.WithValue(ctx, contextKey{}, fmt.Sprintf("%v, connection %s", ctx.Value(contextKey{}), c.RemoteAddr()))
			},
			BaseContext: func(l net.Listener) context.Context {
				return context.WithValue(context.Background(), contextKey{}, "listener "+l.Addr().Network())
			},
		}
		b := serveGeneration(t, network, srv, time.Hour)
		c := connect(t, a)
		c.send(get)
		c.expect("predecessor / 0")
		a.moveTo(t, b)
		a.waitEmpty(t)

		remote := c.LocalAddr().String()
		if network == "unix" {
			remote = "@" // of a client without a name, as without a move
		}
		for range 2 {
			c.send(get)
			c.expect(fmt.Sprintf("listener %s, connection %s %s %s /", network, remote, c.RemoteAddr(), remote))
		}
		c.Close()
		for _, want := range []string{"new", "active", "idle", "active", "idle", "closed"} {
			if got := within(t, states, want); got != remote+" "+want {
				t.Fatalf("ConnState: %q, want %q", got, remote+" "+want)
			}
		}
	})
}

// The clocks of net/http that run while a request is read begin with its first
// byte, unless it is the connection's first request.
func TestMovedConnectionOutlivesReadTimeouts(t *testing.T) {
	t.Parallel()
	const timeout = 500 * time.Millisecond
	for _, srv := range []*http.Server{
		{ReadHeaderTimeout: timeout},
		{ReadHeaderTimeout: timeout, IdleTimeout: time.Hour},
		{ReadTimeout: timeout, IdleTimeout: time.Hour},
	} {
		t.Run(fmt.Sprintf("header=%v read=%v idle=%v", srv.ReadHeaderTimeout, srv.ReadTimeout, srv.IdleTimeout), func(t *testing.T) {
			t.Parallel()
			a := serveGeneration(t, "tcp", &http.Server{Handler: named("predecessor")}, time.Hour)
			srv.Handler = named("successor")
			b := serveGeneration(t, "tcp", srv, time.Hour)
			used := connect(t, a)
			used.send(get)
			used.expect("predecessor / 0")
			a.moveTo(t, b)
			a.waitEmpty(t)
			slow := connect(t, b)
			slow.send("GET / HTTP/1.1\r\n")
			slow.expectEnd() // the timeout is over for all that have been there before
			used.send(get)
			used.expect("successor / 0")
			// But they run: half a request is not waited for.
			used.send("GET / HTTP/1.1\r\nHost: x\r\n")
			used.expectEnd()
		})
	}
}

// What a client's time was before the move counts after it: a silent one gains nothing
// by a restart.
func TestClocksGoOnOverMoves(t *testing.T) {
	t.Parallel()
	const timeout = 1200 * time.Millisecond
	for _, test := range []struct {
		name string
		srv  *http.Server
		send string // before the moves
		then string // after them
	}{
		{"header of a silent connection", &http.Server{ReadHeaderTimeout: timeout}, "", ""},
		{"header of the first request", &http.Server{ReadHeaderTimeout: timeout}, "", "GET / HTTP/1.1\r\n"},
		{"read of a silent connection", &http.Server{ReadTimeout: timeout, IdleTimeout: time.Hour}, "", ""},
		{"idle", &http.Server{IdleTimeout: timeout, ReadHeaderTimeout: time.Hour}, get, ""},
		{"idle, by the read timeout", &http.Server{ReadTimeout: timeout}, get, ""},
		{"idle, and the next request's first bytes", &http.Server{IdleTimeout: timeout}, get, "GE"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			// A busy machine may need several tries to be in time.
			var lasted time.Duration
			for range 5 {
				if lasted = lastsOverMoves(t, test.srv, timeout, test.send, test.then); lasted <= timeout*14/10 {
					return
				}
			}
			t.Errorf("the connection has ended after %v, want %v", lasted, timeout)
		})
	}
}

// lastsOverMoves returns how long a connection lasts that is moved twice in the middle of its
// timeout, before which it must not end.
func lastsOverMoves(t *testing.T, like *http.Server, timeout time.Duration, before, after string) time.Duration {
	t.Helper()
	var chain []*generation
	for range 3 {
		srv := &http.Server{Handler: named("server"), ReadHeaderTimeout: like.ReadHeaderTimeout,
			ReadTimeout: like.ReadTimeout, IdleTimeout: like.IdleTimeout}
		chain = append(chain, serveGeneration(t, "tcp", srv, time.Hour))
	}
	start := time.Now()
	c := connect(t, chain[0])
	if before != "" {
		c.send(before)
		c.expect("server / 0")
	}
	driver.Instant(t, timeout/2) // what is measured
	chain[0].moveTo(t, chain[1])
	chain[0].waitEmpty(t)
	chain[1].moveTo(t, chain[2])
	chain[1].waitEmpty(t)
	if after != "" {
		c.send(after)
	}
	if _, err := io.ReadAll(c.answers); err != nil { // net/http takes "GE" for a bad request
		t.Errorf("the connection has %v, want its end", err)
	}
	lasted := time.Since(start)
	if lasted < timeout {
		t.Errorf("the connection has ended after %v already, want %v", lasted, timeout)
	}
	return lasted
}

// IdleTimeout is for the time between two requests: a connection that has brought none
// has no such clock, before and after a move. And what began in time may take longer.
func TestIdleTimeoutIsOnlyForTheTimeBetweenRequests(t *testing.T) {
	t.Parallel()
	const timeout = 300 * time.Millisecond
	a := serveGeneration(t, "tcp", &http.Server{Handler: named("predecessor"), IdleTimeout: timeout}, time.Hour)
	b := serveGeneration(t, "tcp", &http.Server{Handler: named("successor"), IdleTimeout: timeout}, time.Hour)
	fresh, used := connect(t, a), connect(t, a)
	used.send(get)
	used.expect("predecessor / 0")
	a.moveTo(t, b)
	a.waitEmpty(t)
	used.send(get[:8])
	later := connect(t, b)
	later.send(get)
	later.expect("successor / 0")
	later.expectEnd() // the time is over
	fresh.send(get)
	fresh.expect("successor / 0")
	used.send(get[8:])
	used.expect("successor / 0")
}

// What interrupts a Read for the move leaves net/http's own deadline as it was.
func TestIdleTimeoutHoldsAfterARefusal(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	g := serveGeneration(t, "tcp", &http.Server{Handler: named("server"), IdleTimeout: timeout}, time.Hour)
	c := connect(t, g)
	start := time.Now()
	c.ask()
	offered := make(chan bool, 10)
	d := g.drainWith(t, func(*conn) bool { offered <- true; return false })
	within(t, offered, "the connection to be offered")
	d.wakeAll()
	within(t, offered, "the connection to be offered again")
	c.expectEnd()
	if lasted := time.Since(start); lasted < timeout {
		t.Errorf("the connection has ended after %v, want %v", lasted, timeout)
	}
}

// A deadline that a handler sets does not survive its request, nor is it lost
// by a move that was tried before.
func TestHandlersDeadlineHoldsInADrain(t *testing.T) {
	t.Parallel()
	got := make(chan error, 1)
	g := serveGeneration(t, "tcp", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			http.NewResponseController(w).SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			_, err := r.Body.Read(make([]byte, 1))
			got <- err
			return
		}
		named("server").ServeHTTP(w, r)
	})}, time.Hour)
	c := connect(t, g)
	offered := make(chan bool, 10)
	g.drainWith(t, func(*conn) bool { offered <- true; return false })
	within(t, offered, "the connection to be offered")
	c.ask()
	within(t, offered, "the connection to be offered again")
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
	if err := within(t, got, "the handler's Read"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read after the handler's deadline: %v", err)
	}
}

// moveBy begins a drain in which hand has the batches for the successor.
func (g *generation) moveBy(t *testing.T, hand func([]syscall.Conn) error) *drain {
	d := &drain{server: g.server, grace: g.app.idleGrace, begin: time.Now(), middle: time.Now().Add(time.Hour)}
	d.newPace(true)
	d.mover = newMover(func(conns []syscall.Conn, _ []handoff.Waiting) error { return hand(conns) })
	d.mover.timeout = time.Hour // they come, however slow the machine is
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		g.draining.Store(nil)
		cancel()
		<-d.mover.done
	})
	g.listener.Pause()
	g.draining.Store(d)
	go d.move(ctx)
	return d
}

// refuse begins a drain to a successor that takes no connection of g.
func (g *generation) refuse(t *testing.T) *drain {
	return g.moveBy(t, func([]syscall.Conn) error { return errors.New("refused") })
}

func TestRefusedConnectionsAreServedOn(t *testing.T) {
	t.Parallel()
	const grace = time.Second
	handler, begun, release := slowHandler()
	g := serveGeneration(t, "tcp", &http.Server{Handler: handler}, grace)
	c := connect(t, g)
	c.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	within(t, begun, "the slow request")
	d := g.refuse(t)
	close(release)
	if resp := c.expect("done"); resp.Close {
		t.Error("the answer says Connection: close before the refusal")
	}
	within(t, d.mover.done, "the refusal")
	g.wakeAndLook(t, d)
	c.send(get)
	if resp := c.expect("done"); !resp.Close {
		t.Error("the answer after the refusal does not say Connection: close")
	}
	c.expectEnd()
}

func TestRefusedConnectionsEndAfterTheGrace(t *testing.T) {
	t.Parallel()
	const grace = 200 * time.Millisecond
	g := serveGeneration(t, "tcp", &http.Server{Handler: named("server")}, grace)
	fresh, idle := connect(t, g), connect(t, g)
	idle.ask()
	start := time.Now()
	g.refuse(t)
	for _, c := range []*client{fresh, idle} {
		c.expectEnd()
		if lasted := time.Since(start); lasted < grace {
			t.Errorf("an idle connection has ended after %v, want %v", lasted, grace)
		}
	}
}

// A program may close a connection at any time; that is no refusal.
func TestConnectionClosedWhileItWaitsDoesNotCount(t *testing.T) {
	t.Parallel()
	accepted := make(chan net.Conn, 2)
	srv := &http.Server{ConnContext: func(ctx context.Context, c net.Conn) context.Context {
		accepted <- c
		return ctx
	}}
	g := serveGeneration(t, "tcp", srv, time.Hour)
	c := connect(t, g)
	closed := coreOf(within(t, accepted, "the connection"))
	connect(t, g)
	open := coreOf(within(t, accepted, "the other connection"))
	closed.Close()
	var moved []syscall.Conn
	m := newMover(func(conns []syscall.Conn, _ []handoff.Waiting) error {
		if slices.Contains(conns, syscall.Conn(closed.raw)) {
			return errors.New("one is closed") // of a parked one it would not be net.ErrClosed
		}
		moved = append(moved, conns...)
		return nil
	})
	if err := m.move([]offer{{conn: closed}, {conn: open}}); err != nil {
		t.Errorf("moving a connection that is closed and one that is open: %v", err)
	}
	if len(moved) != 1 || moved[0] != open.raw {
		t.Errorf("moved %d connections, want the one that is open", len(moved))
	}
	if err := m.move([]offer{{conn: closed}}); err != nil || len(moved) != 1 {
		t.Errorf("moving a connection that is closed: %v, %d moved", err, len(moved))
	}
	c.expectEnd()
}

// A request on a connection that waits to be moved waits too. So few do at a time,
// and the others are served as ever.
func TestFewConnectionsWaitAtATime(t *testing.T) {
	t.Parallel()
	const open = 4 * ahead
	g := serveGeneration(t, "tcp", &http.Server{Handler: named("server")}, time.Hour)
	served := make(chan error, open)
	clients := make([]*client, open)
	for i := range clients {
		clients[i] = connect(t, g)
		clients[i].ask()
	}
	handed, refuse := make(chan int, 1), make(chan error)
	g.moveBy(t, func(conns []syscall.Conn) error {
		handed <- len(conns)
		return <-refuse
	})
	t.Cleanup(func() { close(refuse) })
	if n := within(t, handed, "a batch"); n > ahead {
		t.Errorf("%d connections in the first batch, want at most %d", n, ahead)
	}
	for _, c := range clients {
		go func() {
			var err error
			for n, last := 0, false; n < 3 && !last && err == nil; n++ { // as soon as it is idle again, it comes by itself
				if _, err = io.WriteString(c, get); err == nil {
					var resp *http.Response
					resp, _, err = c.tryAnswer()
					last = err == nil && resp.Close
				}
			}
			served <- err
		}()
	}
	clientsServed := func(n int, when string) {
		t.Helper()
		for i := range n {
			if err := within(t, served, fmt.Sprintf("client %d of %d %s", i+1, n, when)); err != nil {
				t.Fatalf("a connection has ended %s: %v", when, err)
			}
		}
	}
	clientsServed(open-2*ahead, "while others wait to be moved")
	refuse <- errors.New("refused")
	clientsServed(2*ahead, "after the refusal")
}

func TestAllIdleConnectionsMove(t *testing.T) {
	t.Parallel()
	const open = 3 * ahead
	g := serveGeneration(t, "tcp", &http.Server{Handler: named("server")}, time.Hour)
	clients := make([]*client, open)
	for i := range clients {
		clients[i] = connect(t, g)
	}
	moved := make(chan int, open)
	g.moveBy(t, func(conns []syscall.Conn) error {
		moved <- len(conns)
		return nil
	})
	for n := 0; n < open; {
		n += within(t, moved, fmt.Sprintf("more than %d of %d to be moved", n, open))
	}
	for _, c := range clients {
		c.expectEnd() // nobody else has it here
	}
}

// More may become idle while a batch is on its way than may wait for the next.
func TestAllBusyConnectionsMoveWhenTheyAreIdle(t *testing.T) {
	t.Parallel()
	const open = 4 * ahead
	begun, finish := make(chan bool), make(chan bool)
	g := serveGeneration(t, "tcp", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- true
		<-finish
	})}, time.Hour)
	clients := make([]*client, open)
	for i := range clients {
		clients[i] = connect(t, g)
		clients[i].send(get)
		within(t, begun, "a request")
	}
	moved, goOn := make(chan int, open), make(chan bool)
	d := g.moveBy(t, func(conns []syscall.Conn) error {
		moved <- len(conns)
		<-goOn
		return nil
	})
	t.Cleanup(func() { close(goOn) })
	close(finish)
	for _, c := range clients {
		c.expect("")
	}
	n := within(t, moved, "a batch")
	driver.Eventually(t, "the others to come", func() bool {
		busy := slices.ContainsFunc(g.listener.Entries(), func(e *accept.Entry) bool { return !e.Conn.(*conn).is(idle) })
		return !busy && len(d.mover.missed) > 0
	})
	for n < open {
		goOn <- true
		n += within(t, moved, fmt.Sprintf("more than %d of %d to be moved", n, open))
	}
}

// That a batch fails while the drain is called off is no refusal. What is offered then
// stays here.
func TestDrainCalledOffIsNoRefusal(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	m := newMover(func([]syscall.Conn, []handoff.Waiting) error {
		cancel()
		return errors.New("closed")
	})
	ended := make(chan error, 1)
	go func() { ended <- m.run(ctx, func() []*accept.Entry { return nil }) }()
	g := serveGeneration(t, "tcp", &http.Server{}, time.Hour)
	connect(t, g)
	c := g.listener.Entries()[0].Conn.(*conn)
	offer := func() [2]bool {
		result := make(chan [2]bool, 1)
		go func() {
			offered, taken := m.offer(c)
			result <- [2]bool{offered, taken}
		}()
		return within(t, result, "the answer to an offer")
	}
	if got := offer(); got != [2]bool{true, false} {
		t.Errorf("offered and taken: %v, want that it is offered and not taken", got)
	}
	if err := within(t, ended, "the end"); err != nil {
		t.Errorf("refused: %v", err)
	}
	if got := offer(); got != [2]bool{} {
		t.Errorf("offered and taken after the end: %v", got)
	}
}

// Those that are asked first may all have something better to do.
func TestIdleConnectionsMoveThoughTheFirstAreBusy(t *testing.T) {
	t.Parallel()
	begun, release := make(chan bool), make(chan bool)
	t.Cleanup(func() { close(release) })
	g := serveGeneration(t, "tcp", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- true
		<-release
	})}, time.Hour)
	for range ahead + 1 {
		connect(t, g).send(get)
		within(t, begun, "a request")
	}
	connect(t, g)
	handed := make(chan int, 1)
	g.moveBy(t, func(conns []syscall.Conn) error {
		handed <- len(conns)
		return nil
	})
	if n := within(t, handed, "the idle connection to be moved"); n != 1 {
		t.Errorf("%d connections moved, want 1", n)
	}
}

// All that were asked to move may have begun a request, and never come.
func TestOthersAreAskedThoughNobodyComes(t *testing.T) {
	t.Parallel()
	var open []*accept.Entry
	for range ahead + 1 {
		c, _ := fakeConn()
		open = append(open, &c.entry)
	}
	last := open[ahead].Conn.(*conn)
	m := newMover(nil)
	m.timeout = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	go m.run(ctx, func() []*accept.Entry { return open })
	driver.Eventually(t, "the last connection to be asked", func() bool { return last.is(woken) })
	cancel()
	within(t, m.done, "the end")
}

// All that handlers do with a connection works in between moves.
func TestHandlersSeeNothingOfMoves(t *testing.T) {
	t.Parallel()
	driver.Each(t, []string{"tcp", "unix"}, func(t *testing.T, network string) {
		file := t.TempDir() + "/file"
		if err := os.WriteFile(file, []byte(strings.Repeat("f", 1<<20)), 0o600); err != nil {
			t.Fatal(err)
		}
		flushed := make(chan bool)
		mux := http.NewServeMux()
		mux.HandleFunc("/flush", func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "first ")
			w.(http.Flusher).Flush()
			<-flushed
			io.WriteString(w, "second ")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Errorf("ResponseController.Flush: %v", err)
			}
		})
		mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
			if _, ok := w.(io.ReaderFrom); !ok {
				t.Errorf("%T has no ReadFrom", w)
			}
			http.ServeFile(w, r, file)
		})
		mux.HandleFunc("/deadlines", func(w http.ResponseWriter, r *http.Request) {
			c := http.NewResponseController(w)
			err := errors.Join(c.SetReadDeadline(time.Now().Add(time.Hour)), c.SetWriteDeadline(time.Now().Add(time.Hour)), c.EnableFullDuplex())
			io.WriteString(w, fmt.Sprint(err))
		})
		mux.HandleFunc("/hijack", echo)

		// Each client moves before and after each of its requests.
		var chain []*generation
		for range 5 {
			chain = append(chain, serveGeneration(t, network, &http.Server{Handler: mux}, time.Hour))
		}
		c := connect(t, chain[0])
		move := func() {
			chain[0].moveTo(t, chain[1])
			chain[0].waitEmpty(t)
			chain = chain[1:]
		}
		move()
		c.send("GET /flush HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(c.answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		first := make([]byte, len("first "))
		if _, err := io.ReadFull(resp.Body, first); err != nil || string(first) != "first " {
			t.Fatalf("what was flushed: %q, %v", first, err)
		}
		flushed <- true
		if rest, err := io.ReadAll(resp.Body); err != nil || string(rest) != "second " {
			t.Fatalf("what came after it: %q, %v", rest, err)
		}
		move()
		c.send("GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, body := c.answer(); len(body) != 1<<20 {
			t.Errorf("the file has %d bytes", len(body))
		}
		move()
		c.send("GET /deadlines HTTP/1.1\r\nHost: x\r\n\r\n")
		c.expect("<nil>")
		move()
		c.send("GET /hijack HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		if resp, err := http.ReadResponse(c.answers, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("answer: %v, %v", resp, err)
		}
		c.send("hello\n")
		if line, err := c.answers.ReadString('\n'); line != "hello\n" {
			t.Errorf("the hijacked connection brings %q, %v", line, err)
		}
	})
}

// The connection that net/http and hijackers get can do all that the one of
// package net can: ReadFrom (sendfile, splice), CloseWrite, SyscallConn, and what
// is yet to come.
func TestConnectionsKeepTheirMethods(t *testing.T) {
	t.Parallel()
	for ours, concrete := range map[any]any{&tcpConn{}: &net.TCPConn{}, &unixConn{}: &net.UnixConn{}} {
		have, want := reflect.TypeOf(ours), reflect.TypeOf(concrete)
		for i := range want.NumMethod() {
			if _, ok := have.MethodByName(want.Method(i).Name); !ok {
				t.Errorf("%v has no %s, %v has", have, want.Method(i).Name, want)
			}
		}
	}
	for _, network := range []string{"tcp", "unix"} {
		got := make(chan net.Conn, 1)
		g := serveGeneration(t, network, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
			}
			got <- c
		})}, time.Hour)
		c := connect(t, g)
		c.send(get)
		hijacked := within(t, got, "the hijacked connection")
		if _, ok := hijacked.(io.ReaderFrom); !ok && network == "tcp" {
			t.Errorf("%T is no io.ReaderFrom", hijacked)
		}
		if _, ok := hijacked.(io.WriterTo); !ok && network == "tcp" {
			t.Errorf("%T is no io.WriterTo", hijacked)
		}
		if err := hijacked.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Errorf("CloseWrite: %v", err)
		}
		c.expectEnd()
		hijacked.Close()
	}
}

func TestReverseProxyMovesItsClients(t *testing.T) {
	t.Parallel()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			echo(w, r)
			return
		}
		named("backend").ServeHTTP(w, r)
	}))
	t.Cleanup(backend.Close)
	target, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	testHandler(t, httputil.NewSingleHostReverseProxy(target), "backend")

	// What it switches to another protocol, it does in a drain too.
	g := serveGeneration(t, "tcp", &http.Server{Handler: httputil.NewSingleHostReverseProxy(target)}, time.Hour)
	c := connect(t, g)
	drained, _ := g.begin(t, handOver)
	c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	resp, err := http.ReadResponse(c.answers, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || !slices.Equal(resp.Header.Values("Connection"), []string{"Upgrade"}) {
		t.Fatalf("answer: %v, %v", resp, err)
	}
	c.send("hello\n")
	if line, err := c.answers.ReadString('\n'); line != "hello\n" {
		t.Errorf("the connection brings %q, %v", line, err)
	}
	c.Close()
	ends(t, drained)
}

func TestTimeoutHandlerMovesItsClients(t *testing.T) {
	t.Parallel()
	testHandler(t, http.TimeoutHandler(named("handler"), time.Minute, "late"), "handler")
}

// testHandler moves clients back and forth between servers with this handler,
// while they send requests. The answers are those of named.
func testHandler(t *testing.T, handler http.Handler, name string) {
	t.Helper()
	const clients, moves = 4, 20
	var chain []*generation
	for range moves + 1 {
		chain = append(chain, serveGeneration(t, "tcp", &http.Server{Handler: handler}, time.Hour))
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range clients {
		c := connect(t, chain[0])
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; !stop.Load(); i++ {
				body := strings.Repeat("b", i%3*4000)
				fmt.Fprintf(c, "POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", i, len(body), body)
				_, got, err := c.tryAnswer()
				if want := fmt.Sprintf("%s /%d %d", name, i, len(body)); err != nil || got != want {
					t.Errorf("answer %q, %v; want %q", got, err, want)
					return
				}
			}
		}()
	}
	for i := range moves {
		chain[i].moveTo(t, chain[i+1])
		chain[i].waitEmpty(t)
	}
	stop.Store(true)
	wg.Wait()
}

func TestRequestCutInTwoIsAnswered(t *testing.T) {
	const (
		first  = "POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
		second = "POST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde"
	)
	for _, h2c := range []bool{false, true} {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprintf("h2c=%v busy=%v", h2c, busy), func(t *testing.T) {
				t.Parallel()
				for cut := len(first); cut <= len(first+second); cut++ {
					t.Run(fmt.Sprint("cut=", cut-len(first)), func(t *testing.T) {
						requestCutInTwo(t, first+second, cut, h2c, busy)
					})
				}
				// Some clients send a line break after a body, which does not count.
				for cut := range 3 {
					t.Run(fmt.Sprint("line break, cut=", cut), func(t *testing.T) {
						requestCutInTwo(t, first+"\r\n"+second, len(first)+cut, h2c, busy)
					})
				}
			})
		}
	}
}

// requestCutInTwo sends two requests in one stream, up to the cut before the
// restart and the rest after it. If busy, the restart comes while the first
// request is being handled.
func requestCutInTwo(t *testing.T, stream string, cut int, h2c, busy bool) {
	begun, release := make(chan bool, 1), make(chan bool)
	handler := func(name string) *http.Server {
		h := named(name)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/1" && busy {
				begun <- true
				<-release
			}
			h.ServeHTTP(w, r)
		})}
		if h2c {
			enableH2C(srv)
		}
		return srv
	}
	asks, idle := make(chan int, 1000), make(chan bool, 10)
	predecessor := handler("predecessor")
	predecessor.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		(&tap{asks: asks}).on(c)
		return ctx
	}
	predecessor.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateIdle {
			for len(asks) > 0 {
				<-asks // those of the first request
			}
			idle <- true
		}
	}
	a := serveGeneration(t, "tcp", predecessor, 0)
	b := serveGeneration(t, "tcp", handler("successor"), 0)

	c := dial(t, a)
	c.send(stream[:cut])
	if busy {
		within(t, begun, "the first request")
		a.moveTo(t, b)
		close(release)
		c.expect("predecessor /1 3")
	} else {
		c.expect("predecessor /1 3")
		within(t, idle, "the first request's end")
		if cut < len(stream) {
			within(t, asks, "the server to wait for the rest")
		}
		a.moveTo(t, b)
	}
	c.send(stream[cut:])
	resp, body := c.answer()
	if want := []string{"predecessor /2 5", "successor /2 5"}; resp.StatusCode != 200 || body != want[0] && body != want[1] {
		t.Errorf("the second request is answered with %s, %q; want one of %q", resp.Status, body, want)
	}
}
