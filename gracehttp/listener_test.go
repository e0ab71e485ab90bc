//go:build unix

package gracehttp

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/facebookgo/grace/gracenet"
	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/testserver/driver"
	"github.com/facebookgo/grace/internal/testserver/kit"
)

// wrappers are what programs put around their listeners.
var wrappers = map[string]func(net.Listener) net.Listener{
	"proxy": func(l net.Listener) net.Listener { return kit.ProxyListener{Listener: l} },
	"limit": func(l net.Listener) net.Listener { return kit.LimitListener(l, 4) },
	"tls":   func(l net.Listener) net.Listener { return tls.NewListener(l, wrapperTLS()) },
	"h2":    func(l net.Listener) net.Listener { return tls.NewListener(l, wrapperTLS()) },
	"own":   func(l net.Listener) net.Listener { return ownListener{tls.NewListener(l, wrapperTLS())} },
}

// An ownListener's connections speak TLS, and are of a type of its own.
type ownListener struct{ net.Listener }

type ownConn struct{ *tls.Conn }

func (l ownListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return ownConn{c.(*tls.Conn)}, nil
}

func wrapperTLS() *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{certificate().cert}, NextProtos: []string{"h2", "http/1.1"}}
}

// serveWrapped serves on a wrapper around a socket from gracenet, of which nothing is
// known if it is a stranger's.
func serveWrapped(t *testing.T, kind string, stranger bool, srv *http.Server, idleGrace time.Duration) *generation {
	t.Helper()
	listen := new(gracenet.Net).Listen
	if stranger {
		listen = net.Listen
	}
	l, err := listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := newGenerationOn(t, wrappers[kind](l), srv, idleGrace)
	t.Cleanup(g.cut)
	return g
}

// connectWrapped returns a connection on which a request may be sent.
func connectWrapped(t *testing.T, g *generation, kind string) *client {
	t.Helper()
	c := dial(t, g)
	switch kind {
	case "proxy":
		c.send(kit.ProxyLine)
	case "tls", "own":
		c = newClient(t, tls.Client(c.Conn, clientTLS("http/1.1")))
	}
	return c
}

// wrapped1 are those that speak HTTP/1.
var wrapped1 = []string{"proxy", "limit", "tls"}

// Connections of a wrapper's own type are told at their next request, or have the grace
// for it, and the listener accepts again if the successor fails.
func TestWrappedConnectionsAreToldAndServedAgain(t *testing.T) {
	t.Parallel()
	for _, kind := range wrapped1 {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const grace = 300 * time.Millisecond
			release := make(chan bool)
			g := serveWrapped(t, kind, false, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/wait" {
					release <- true
				}
				named("server").ServeHTTP(w, r)
			})}, grace)
			for range 2 {
				asks, idle, busy := connectWrapped(t, g, kind), connectWrapped(t, g, kind), connectWrapped(t, g, kind)
				for _, c := range []*client{asks, idle, busy} {
					c.ask()
				}
				busy.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
				start := time.Now()
				drained, _ := g.begin(t, handOver)
				if resp := asks.ask(); !resp.Close {
					t.Error("the answer does not say Connection: close")
				}
				asks.expectEnd()
				idle.expectEnd()
				if lasted := time.Since(start); lasted < grace {
					t.Errorf("an idle connection has ended after %v, want %v", lasted, grace)
				}
				within(t, release, "the handler")
				if resp := busy.expect("server /wait 0"); !resp.Close {
					t.Error("the answer that was under way does not say Connection: close")
				}
				ends(t, drained)
				if n := g.Count(); n.Open != 0 || n.Told != 2 || n.Idle != 1 {
					t.Errorf("counted %+v, want two told, and one closed idle", n)
				}
				if !g.Resume() {
					t.Fatal("it does not accept again")
				}
			}
		})
	}
}

// What comes before the first request, which the wrapper reads, is not interrupted when a
// drain begins, or is called off.
func TestWrapperIsNotInterruptedBeforeTheFirstRequest(t *testing.T) {
	t.Parallel()
	for _, calledOff := range []bool{false, true} {
		t.Run(fmt.Sprint("calledOff=", calledOff), func(t *testing.T) {
			t.Parallel()
			g := serveWrapped(t, "proxy", false, &http.Server{Handler: named("server")}, time.Second)
			c := dial(t, g)
			within(t, g.accepted, "the connection to be accepted")
			c.send(kit.ProxyLine[:6])
			drained, cancel := g.begin(t, handOver)
			if calledOff {
				cancel()
				<-drained
				g.Resume()
				driver.Instant(t, 1200*time.Millisecond) // the grace that it had
			}
			c.send(kit.ProxyLine[6:] + get)
			if resp := c.expect("server / 0"); resp.Close == calledOff {
				t.Errorf("the answer says Connection: close: %v", resp.Close)
			}
		})
	}
}

// A wrapper whose Accept waits for a place, not for the socket, does not hold the drain up.
func TestLimitThatIsReachedHoldsUpNoDrain(t *testing.T) {
	t.Parallel()
	for _, to := range []*handoff.Successor{stop, handOver} {
		t.Run(fmt.Sprint("handOver=", to != nil), func(t *testing.T) {
			t.Parallel()
			g := serveWrapped(t, "limit", false, &http.Server{Handler: named("server")}, 100*time.Millisecond)
			var clients []*client
			for range 4 {
				c := dial(t, g)
				c.ask()
				clients = append(clients, c)
			}
			drained, _ := g.begin(t, to)
			for _, c := range clients {
				c.expectEnd()
			}
			ends(t, drained)
		})
	}
}

// Nor does it hold up that this process serves again, which begins with the next place.
func TestLimitThatIsReachedHoldsUpNoRollback(t *testing.T) {
	t.Parallel()
	shutdown := make(chan bool, 1)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			echo(w, r)
			return
		}
		named("server").ServeHTTP(w, r)
	})}
	srv.RegisterOnShutdown(func() { shutdown <- true })
	g := serveWrapped(t, "limit", false, srv, 0)
	var clients []*client
	for range 4 {
		c := dial(t, g)
		c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		if resp, err := http.ReadResponse(c.answers, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("answer: %v, %v", resp, err)
		}
		clients = append(clients, c)
	}
	drained, cancel := g.begin(t, handOver)
	within(t, shutdown, "net/http's Shutdown")
	cancel()
	within(t, drained, "the drain's end")
	resumed := make(chan bool, 1)
	go func() { resumed <- g.Resume() }()
	if !within(t, resumed, "Resume") {
		t.Fatal("it does not accept again")
	}
	for _, c := range clients[:2] {
		c.Close()
		c := dial(t, g)
		for range 2 {
			if resp := c.ask(); resp.Close {
				t.Error("an answer says Connection: close")
			}
		}
	}
	select {
	case err := <-g.served:
		t.Errorf("Serve has returned %v", err)
	default:
	}
}

// What waits in the kernel at a stop is served, through the wrapper.
func TestStopAnswersTheBacklogOfAWrapper(t *testing.T) {
	t.Parallel()
	for _, kind := range wrapped1 {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := serveWrapped(t, kind, false, &http.Server{Handler: named("server")}, time.Second)
			g.listener.Pause() // as if the process had no time to accept
			var clients []*client
			for range 3 {
				clients = append(clients, dial(t, g))
			}
			drained := make(chan error, 1)
			go func() { drained <- g.Drain(context.Background(), handoff.Drain{}) }()
			driver.AwaitRefused(t, "tcp", g.addr)
			for _, c := range clients {
				switch kind {
				case "proxy":
					c.send(kit.ProxyLine)
				case "tls":
					c = newClient(t, tls.Client(c.Conn, clientTLS("http/1.1")))
				}
				if resp := c.ask(); !resp.Close {
					t.Error("the answer does not say Connection: close")
				}
			}
			ends(t, drained)
		})
	}
}

// A wrapper of which nothing is known is closed, and cannot be served again: a bare socket
// in its place would let in what it keeps out.
func TestWrapperThatCannotBePausedIsClosed(t *testing.T) {
	t.Parallel()
	for _, kind := range wrapped1 {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := serveWrapped(t, kind, true, &http.Server{Handler: named("server")}, time.Second)
			c := connectWrapped(t, g, kind)
			c.ask()
			drained, _ := g.begin(t, handOver)
			driver.AwaitRefused(t, "tcp", g.addr)
			if resp := c.ask(); !resp.Close {
				t.Error("the answer does not say Connection: close")
			}
			ends(t, drained)
			if g.Resume() {
				t.Error("it says that it accepts again")
			}
			driver.AwaitRefused(t, "tcp", g.addr)
		})
	}
}

// The program's hooks get what its listener has accepted, and its handlers see TLS.
func TestWrappersOwnTypeIsTheProgramsToSee(t *testing.T) {
	t.Parallel()
	type key struct{}
	driver.Each(t, []string{"proxy", "limit", "tls", "h2", "own"}, func(t *testing.T, kind string) {
		states := make(chan string, 100)
		g := serveWrapped(t, kind, false, &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "%v TLS %v %s", r.Context().Value(key{}), r.TLS != nil, r.Proto)
			}),
			ConnContext: func(ctx context.Context, c net.Conn) context.Context {
				return context.WithValue(ctx, key{}, fmt.Sprintf("%T", c))
			},
			ConnState: func(c net.Conn, state http.ConnState) { states <- fmt.Sprintf("%T", c) },
		}, 0)
		types := map[string]string{"proxy": "*kit.proxyConn", "limit": "*kit.limitConn", "own": "gracehttp.ownConn"}
		want, proto := types[kind], "HTTP/1.1"
		if want == "" {
			want = "*tls.Conn"
		}
		var got string
		if kind == "h2" {
			proto = "HTTP/2.0"
			tr := &http.Transport{TLSClientConfig: clientTLS(), Protocols: new(http.Protocols)}
			tr.Protocols.SetHTTP2(true)
			defer tr.CloseIdleConnections()
			var err error
			if got, err = fetch(&http.Client{Transport: tr}, "https://"+g.addr+"/"); err != nil {
				t.Fatal(err)
			}
		} else {
			c := connectWrapped(t, g, kind)
			c.send(get)
			_, got = c.answer()
		}
		isTLS := kind == "tls" || kind == "h2" || kind == "own"
		if want := fmt.Sprintf("%s TLS %v %s", want, isTLS, proto); got != want {
			t.Errorf("the handler sees %q, want %q", got, want)
		}
		if state := within(t, states, "ConnState"); state != want {
			t.Errorf("ConnState gets a %s, want %s", state, want)
		}
	})
}

// HTTP/2 over the program's TLS is told by a GOAWAY, and leaves nothing behind.
func TestHTTP2OfAWrapperDrains(t *testing.T) {
	t.Parallel()
	release := make(chan bool)
	g := serveWrapped(t, "h2", false, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			release <- true
			release <- true
		}
		named("server").ServeHTTP(w, r)
	})}, time.Millisecond)
	tr := &http.Transport{TLSClientConfig: clientTLS(), Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP2(true)
	defer tr.CloseIdleConnections()
	answers := make(chan string, 1)
	go func() {
		body, err := fetch(&http.Client{Transport: tr}, "https://"+g.addr+"/wait")
		answers <- fmt.Sprint(body, " ", err)
	}()
	within(t, release, "the handler")
	if n := g.Count(); n.Open != 1 || n.HTTP2 != 1 {
		t.Errorf("counted %+v, want one of HTTP/2", n)
	}
	drained, _ := g.begin(t, handOver)
	within(t, release, "the handler")
	if got := within(t, answers, "the answer"); got != "server /wait 0 <nil>" {
		t.Errorf("answer: %s", got)
	}
	ends(t, drained)
	g.waitEmpty(t)
	passed.Range(func(k, _ any) bool {
		if k.(*tls.Conn).LocalAddr().String() == g.addr {
			t.Error("a connection that has ended is still known")
		}
		return true
	})
}

// A handshake that fails, or never ends, keeps no drain, and is logged.
func TestHandshakeOfAWrapperThatFails(t *testing.T) {
	t.Parallel()
	lines := &lockedBuffer{}
	g := serveWrapped(t, "tls", false, &http.Server{ErrorLog: log.New(lines, "", 0)}, 50*time.Millisecond)
	c := dial(t, g)
	c.send(get)
	if resp, err := http.ReadResponse(c.answers, nil); err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a request without TLS is answered with %v, %v; want what net/http says", resp, err)
	}
	within(t, g.closed, "its end")
	dial(t, g) // says nothing
	if err := g.Drain(context.Background(), handoff.Drain{To: handOver}); err != nil {
		t.Errorf("Drain: %v", err)
	}
	if n := strings.Count(lines.String(), "TLS handshake error"); n == 0 {
		t.Errorf("nothing is logged of it:\n%s", lines)
	}
}

// A function of the program's TLS config that panics ends the connection, not the process.
func TestHandshakeOfAWrapperThatPanics(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { panic("no certificate") }}
	lines := &lockedBuffer{}
	g := newGenerationOn(t, tls.NewListener(l, config), &http.Server{ErrorLog: log.New(lines, "", 0)}, 0)
	t.Cleanup(g.cut)
	c := dial(t, g)
	if err := tls.Client(c.Conn, clientTLS()).Handshake(); err == nil {
		t.Error("the handshake is complete")
	}
	if err := g.Drain(context.Background(), handoff.Drain{To: handOver}); err != nil {
		t.Errorf("Drain: %v", err)
	}
	if !strings.Contains(lines.String(), "panic serving "+c.LocalAddr().String()+": no certificate\n") {
		t.Errorf("logged %q, want what net/http says", lines)
	}
}

// TLS of Serve's on top of a wrapper.
func TestTLSOnAWrapper(t *testing.T) {
	t.Parallel()
	srv := &http.Server{Handler: named("server"), TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate().cert}}}
	g := serveWrapped(t, "proxy", false, srv, time.Second)
	begin := func() *client {
		c := dial(t, g)
		c.send(kit.ProxyLine)
		return newClient(t, tls.Client(c.Conn, clientTLS("http/1.1")))
	}
	used, idle, fresh := begin(), begin(), begin()
	for _, c := range []*client{used, idle} {
		c.ask()
	}
	drained, _ := g.begin(t, handOver)
	for _, c := range []*client{used, fresh} {
		if resp := c.ask(); !resp.Close {
			t.Error("the answer does not say Connection: close")
		}
	}
	idle.expectEnd()
	ends(t, drained)
}

// The listener is Serve's, which closes it, whatever happens.
func TestListenerIsClosedWhenServeFails(t *testing.T) {
	open := func() net.Listener {
		l, err := new(gracenet.Net).Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	srv := &http.Server{}
	taken := open()
	defer taken.Close()
	for _, test := range []struct {
		name    string
		servers []*http.Server
		with    []*http.Server
	}{
		{"two for one server", nil, []*http.Server{srv, srv}},
		{"another server's address in use", []*http.Server{{Addr: taken.Addr().String()}}, []*http.Server{{}}},
		{"TLS without a certificate", nil, []*http.Server{{TLSConfig: &tls.Config{}}}},
	} {
		var options []Option
		var addrs []string
		for _, srv := range test.with {
			l := open()
			addrs = append(addrs, l.Addr().String())
			options = append(options, Listener(srv, kit.ProxyListener{Listener: l}))
		}
		if err := ServeWithOptions(test.servers, options...); err == nil {
			t.Errorf("%s: Serve returns nil", test.name)
		}
		for _, addr := range addrs {
			driver.AwaitRefused(t, "tcp", addr)
		}
	}
}

// A server that only a listener was given for, beside one with an address.
func TestServesOnListenersThatItIsGiven(t *testing.T) {
	plain, err := new(gracenet.Net).Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	inner, err := new(gracenet.Net).Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	first, second := &http.Server{Addr: "unix:", Handler: named("first")}, &http.Server{Handler: named("second")}
	s := start(t, []*http.Server{first, second}, Listener(second, kit.ProxyListener{Listener: inner}), Listener(first, plain))
	for i, addr := range []net.Addr{plain.Addr(), inner.Addr()} {
		if s.addrs[i] != addr.String() {
			t.Errorf("server %d listens on %s, want %s", i, s.addrs[i], addr)
		}
	}
	c := s.connect(0)
	c.send(get)
	c.expect("first / 0")
	c = s.connect(1)
	c.send(kit.ProxyLine + get)
	c.expect("second / 0")
}
