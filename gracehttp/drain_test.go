//go:build unix

package gracehttp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
)

// How a server may end: without a successor, and with one that takes no
// connections over, such as a program built on facebookgo/grace.
var (
	stop     *handoff.Successor
	handOver = &handoff.Successor{}
)

const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

// kinds are the connections that a server has.
var kinds = []string{"tcp", "unix", "tls"}

// serveKind serves srv on connections of a kind.
func serveKind(t *testing.T, kind string, srv *http.Server, idleGrace time.Duration) *generation {
	t.Helper()
	network := kind
	if kind == "tls" {
		network = "tcp"
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate().cert}}
	}
	return serveGeneration(t, network, srv, idleGrace)
}

// connect returns a connection of the server's kind that has been accepted.
func connect(t *testing.T, g *generation) *client {
	t.Helper()
	for len(g.accepted) > 0 {
		<-g.accepted
	}
	c := dial(t, g)
	within(t, g.accepted, "the connection to be accepted")
	if g.tls {
		return newClient(t, tls.Client(c.Conn, clientTLS("http/1.1")))
	}
	return c
}

// begin begins a drain, whose result it returns on a channel.
func (g *generation) begin(t *testing.T, to *handoff.Successor) (drained <-chan error, cancel func()) {
	return g.beginIn(t, context.Background(), to)
}

func (g *generation) beginIn(t *testing.T, parent context.Context, to *handoff.Successor) (drained <-chan error, cancel func()) {
	ctx, cancel := context.WithCancel(parent)
	t.Cleanup(cancel)
	done, begun := make(chan error, 1), make(chan bool)
	OnDrain(sync.OnceFunc(func() { close(begun) }))(g.app)
	go func() { done <- g.Drain(ctx, to) }()
	within(t, begun, "the drain to begin")
	return done, cancel
}

func TestStopClosesIdleConnectionsAtOnce(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := serveKind(t, kind, &http.Server{Handler: named("server")}, time.Hour)
			used, fresh := connect(t, g), connect(t, g)
			used.send(get)
			used.expect("server / 0")
			drained, _ := g.begin(t, stop)
			if err := within(t, drained, "the drain's end"); err != nil {
				t.Errorf("Drain: %v", err)
			}
			used.expectEnd()
			if kind == "tls" {
				fresh = newClient(t, fresh.Conn.(*tls.Conn).NetConn())
			}
			fresh.expectEnd()
		})
	}
}

// The handler does not read the first request's body, so that net/http leaves
// the second request in the socket until the first one is answered.
func TestStopAnswersRequestThatWaits(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			begun, release := make(chan bool), make(chan bool)
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == "POST" {
					begun <- true
					<-release
				}
				fmt.Fprint(w, r.Method)
			})}
			g := serveKind(t, kind, srv, time.Hour)
			c := connect(t, g)
			c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
			within(t, begun, "the request")
			c.send("abc" + get)
			drained, _ := g.begin(t, stop)
			close(release)
			c.expect("POST")
			c.expect("GET")
			c.expectEnd()
			if err := within(t, drained, "the drain's end"); err != nil {
				t.Errorf("Drain: %v", err)
			}
		})
	}
}

func TestStopAnswersWhatWasSentBefore(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := serveKind(t, kind, &http.Server{Handler: named("server")}, time.Hour)
			clients := make([]*client, 30)
			for i := range clients {
				clients[i] = connect(t, g)
				clients[i].send(get)
				clients[i].expect("server / 0")
			}
			for _, c := range clients {
				c.send(get)
			}
			drained, _ := g.begin(t, stop)
			for _, c := range clients {
				c.expect("server / 0")
				c.expectEnd()
			}
			if err := within(t, drained, "the drain's end"); err != nil {
				t.Errorf("Drain: %v", err)
			}
		})
	}
}

func TestStopAnswersTheBacklog(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := serveKind(t, kind, &http.Server{Handler: named("server")}, time.Minute)
			g.gate.Pause() // as if the process had no time to accept
			wrote, answers := make(chan bool, 1000), make(chan error, 10)
			for range cap(answers) {
				c := dial(t, g)
				c.Conn = &tellingConn{c.Conn, wrote}
				if kind == "tls" {
					c = newClient(t, tls.Client(c.Conn, clientTLS()))
				}
				go func() {
					_, err := io.WriteString(c.Conn, get)
					if err != nil {
						answers <- err
						return
					}
					_, body, err := c.tryAnswer()
					if err == nil && body != "server / 0" {
						err = fmt.Errorf("answer %q", body)
					}
					answers <- err
				}()
			}
			for range cap(answers) {
				within(t, wrote, "the clients to write")
			}
			drained, _ := g.begin(t, stop)
			for range cap(answers) {
				if err := within(t, answers, "an answer"); err != nil {
					t.Errorf("a connection that nobody had accepted: %v", err)
				}
			}
			if err := within(t, drained, "the drain's end"); err != nil {
				t.Errorf("Drain: %v", err)
			}
		})
	}
}

// A tellingConn tells of each Write.
type tellingConn struct {
	net.Conn
	wrote chan bool
}

func (c *tellingConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.wrote <- true
	return n, err
}

func TestDrainWaitsForRequestsInFlight(t *testing.T) {
	t.Parallel()
	for _, to := range []*handoff.Successor{stop, handOver} {
		for _, kind := range kinds {
			t.Run(fmt.Sprintf("%s handOver=%v", kind, to != nil), func(t *testing.T) {
				t.Parallel()
				// The end is an event: http.Server.Shutdown would look every
				// 500 ms. A busy machine may need several tries to be so fast.
				var took time.Duration
				for range 5 {
					if took = drainInFlight(t, kind, to); took < 400*time.Millisecond {
						return
					}
				}
				t.Errorf("Drain has returned %v after the last answer", took)
			})
		}
	}
}

// drainInFlight drains while a request is being handled, and returns how long
// after its answer the drain has ended.
func drainInFlight(t *testing.T, kind string, to *handoff.Successor) time.Duration {
	begun, release := make(chan bool), make(chan bool)
	cancelled := make(chan bool, 1)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- true
		<-release
		cancelled <- r.Context().Err() != nil
		fmt.Fprint(w, "done")
	})}
	g := serveKind(t, kind, srv, 10*time.Millisecond)
	c := connect(t, g)
	c.send(get)
	within(t, begun, "the request")
	drained, _ := g.begin(t, to)
	select {
	case err := <-drained:
		t.Fatalf("Drain has returned %v while a request is being handled", err)
	case <-time.After(50 * time.Millisecond): // five times the grace
	}
	close(release)
	c.expect("done")
	answered := time.Now()
	if within(t, cancelled, "the handler") {
		t.Error("the drain has cancelled the request's context")
	}
	c.expectEnd()
	if err := within(t, drained, "the drain's end"); err != nil {
		t.Errorf("Drain: %v", err)
	}
	return time.Since(answered)
}

func TestClientsAreToldToGoElsewhere(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := serveKind(t, kind, &http.Server{Handler: named("server")}, time.Hour)
			c := connect(t, g)
			c.send(get)
			if resp := c.expect("server / 0"); resp.Close {
				t.Fatal("an answer says Connection: close before the drain")
			}
			drained, _ := g.begin(t, handOver)
			c.send(get)
			if resp := c.expect("server / 0"); !resp.Close {
				t.Error("an answer in a drain does not say Connection: close")
			}
			c.expectEnd()
			if err := within(t, drained, "the drain's end"); err != nil {
				t.Errorf("Drain: %v", err)
			}
		})
	}
}

// A client that asks for HTTP/2 by Upgrade gets HTTP/1.
func TestUpgradeToH2CIsToldToGoElsewhere(t *testing.T) {
	t.Parallel()
	g := serveGeneration(t, "tcp", &http.Server{Handler: named("server")}, time.Hour)
	c := connect(t, g)
	g.begin(t, handOver)
	c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n")
	if resp := c.expect("server / 0"); !resp.Close {
		t.Error("the answer does not say Connection: close")
	}
	c.expectEnd()
}

func TestIdleConnectionsStayForTheGrace(t *testing.T) {
	t.Parallel()
	const grace = 1500 * time.Millisecond
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := serveKind(t, kind, &http.Server{Handler: named("server")}, grace)
			idle, used := connect(t, g), connect(t, g)
			for _, c := range []*client{idle, used} {
				c.send(get)
				c.expect("server / 0")
			}
			start := time.Now()
			drained, _ := g.begin(t, handOver)
			used.send(get)
			used.expect("server / 0")
			idle.expectEnd()
			if lasted := time.Since(start); lasted < grace {
				t.Errorf("an idle connection was closed after %v, want %v", lasted, grace)
			}
			if err := within(t, drained, "the drain's end"); err != nil {
				t.Errorf("Drain: %v", err)
			}
		})
	}
}

// The answer to a request that was begun before the drain says nothing to the
// client.
func TestGraceBeginsWithTheAnswer(t *testing.T) {
	t.Parallel()
	const grace = 1500 * time.Millisecond
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			begun, release, waits := make(chan bool), make(chan bool), make(chan bool, 10)
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					begun <- true
					<-release
				}
				fmt.Fprint(w, "done")
			}), ConnState: func(_ net.Conn, state http.ConnState) {
				if state == http.StateIdle {
					waits <- true
				}
			}}
			g := serveKind(t, kind, srv, grace)
			idle, c := connect(t, g), connect(t, g)
			idle.send(get)
			idle.expect("done")
			within(t, waits, "the first connection to be idle")
			c.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
			within(t, begun, "the request")
			g.begin(t, handOver)
			idle.expectEnd() // since the grace that began with the drain is over
			close(release)
			if resp := c.expect("done"); resp.Close {
				t.Skip("the client was told")
			}
			within(t, waits, "the connection to be idle")
			g.kickAndLook(t, g.draining.Load())
			c.send(get)
			c.expect("done")
		})
	}
}

// A grace time that is longer than the drain would let it fail.
func TestIdleConnectionsDoNotUseUpTheDrain(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			begun, release := make(chan bool), make(chan bool)
			g := serveKind(t, kind, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					begun <- true
					<-release
				}
				fmt.Fprint(w, "done")
			})}, time.Hour)
			idle, late := connect(t, g), connect(t, g)
			idle.send(get)
			idle.expect("done")
			late.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
			within(t, begun, "the request")
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			drained, _ := g.beginIn(t, ctx, handOver)
			idle.expectEnd()
			close(release) // and this one is idle only now
			late.expect("done")
			if err := within(t, drained, "the drain"); err != nil {
				t.Errorf("Drain: %v", err)
			}
		})
	}
}

// Half a request keeps a connection open, wherever the other half is cut off:
// also if all that was read of it sits in net/http's buffer.
func TestHalfARequestIsWaitedFor(t *testing.T) {
	t.Parallel()
	for _, to := range []*handoff.Successor{stop, handOver} {
		for _, kind := range kinds {
			for _, half := range []string{"G", "GET ", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: x\r\n"} {
				if kind == "tls" && len(half) < 4 {
					continue // in one record with the request before: nobody can tell
				}
				t.Run(fmt.Sprintf("%s handOver=%v half=%q", kind, to != nil, half), func(t *testing.T) {
					t.Parallel()
					g := serveKind(t, kind, &http.Server{Handler: named("server")}, 20*time.Millisecond)
					c, unused := connect(t, g), dial(t, g)
					within(t, g.accepted, "the connection to be accepted")
					c.send(get + half)
					c.expect("server / 0")
					g.begin(t, to)
					unused.expectEnd() // the grace is over; that of a stop, for such a connection
					c.send(strings.TrimPrefix(get, half))
					c.expect("server / 0")
				})
			}
		}
	}
}

func TestHijackedConnectionsAreWaitedForAndTold(t *testing.T) {
	t.Parallel()
	for _, to := range []*handoff.Successor{stop, handOver} {
		for _, kind := range kinds {
			t.Run(fmt.Sprintf("%s handOver=%v", kind, to != nil), func(t *testing.T) {
				t.Parallel()
				told, shutdown := make(chan bool, 1), make(chan bool, 1)
				srv := &http.Server{Handler: http.HandlerFunc(echo)}
				srv.RegisterOnShutdown(func() { shutdown <- true })
				g := serveKind(t, kind, srv, 10*time.Millisecond)
				OnDrain(func() { told <- true })(g.app)
				c := connect(t, g)
				c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				if resp, err := http.ReadResponse(c.answers, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
					t.Fatalf("answer: %v, %v", resp, err)
				}
				drained, _ := g.begin(t, to)
				within(t, told, "the hook of OnDrain")
				within(t, shutdown, "the hook of RegisterOnShutdown")
				select {
				case err := <-drained:
					t.Fatalf("Drain has returned %v while a hijacked connection is open", err)
				case <-time.After(50 * time.Millisecond): // five times the grace
				}
				c.send("still here\n")
				if line, err := c.answers.ReadString('\n'); line != "still here\n" {
					t.Fatalf("the hijacked connection brings %q, %v", line, err)
				}
				c.Close()
				if err := within(t, drained, "the drain's end"); err != nil {
					t.Errorf("Drain: %v", err)
				}
			})
		}
	}
}

// echo hijacks the connection and sends back what comes.
func echo(w http.ResponseWriter, r *http.Request) {
	c, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	defer c.Close()
	io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	io.Copy(c, buffered)
}

func TestDrainEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for _, to := range []*handoff.Successor{stop, handOver} {
		for _, kind := range kinds {
			t.Run(fmt.Sprintf("%s handOver=%v", kind, to != nil), func(t *testing.T) {
				t.Parallel()
				begun := make(chan bool)
				ended := make(chan error, 1)
				g := serveKind(t, kind, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					begun <- true
					<-r.Context().Done()
					ended <- r.Context().Err()
				})}, time.Minute)
				c := connect(t, g)
				c.send(get)
				within(t, begun, "the request")
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
				defer cancel()
				if err := g.Drain(ctx, to); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Drain: %v, want that its time is over", err)
				}
				g.cut()
				within(t, ended, "the handler's context to be cancelled")
				if _, _, err := c.tryAnswer(); err == nil {
					t.Error("the connection is open after all was cut")
				}
			})
		}
	}
}

// http2Client returns a client that speaks HTTP/2 only.
func http2Client(t *testing.T, g *generation) *http.Client {
	tr := &http.Transport{
		Protocols:       new(http.Protocols),
		TLSClientConfig: clientTLS(),
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, g.addr)
		},
	}
	if g.tls {
		tr.Protocols.SetHTTP2(true)
	} else {
		tr.Protocols.SetUnencryptedHTTP2(true)
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

func (g *generation) url(path string) string {
	if g.tls {
		return "https://example.com" + path
	}
	return "http://example.com" + path
}

func fetch(c *http.Client, url string) (string, error) {
	resp, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.ProtoMajor != 2 {
		err = fmt.Errorf("%s was spoken", resp.Proto)
	}
	return string(body), err
}

func serveHTTP2(t *testing.T, kind string, srv *http.Server, idleGrace time.Duration) *generation {
	if kind == "h2c" {
		enableH2C(srv)
		return serveGeneration(t, "tcp", srv, idleGrace)
	}
	return serveKind(t, "tls", srv, idleGrace)
}

// A stream that is open when the drain begins is finished, and idle
// connections get GOAWAY at once.
func TestHTTP2Drains(t *testing.T) {
	t.Parallel()
	for _, to := range []*handoff.Successor{stop, handOver} {
		for _, kind := range []string{"h2", "h2c"} {
			t.Run(fmt.Sprintf("%s handOver=%v", kind, to != nil), func(t *testing.T) {
				t.Parallel()
				begun, release := make(chan bool), make(chan bool)
				g := serveHTTP2(t, kind, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/slow" {
						begun <- true
						<-release
					}
					fmt.Fprint(w, "done")
				})}, time.Hour)
				idle := http2Client(t, g)
				if _, err := fetch(idle, g.url("/")); err != nil {
					t.Fatal(err)
				}
				busy := http2Client(t, g)
				answer := make(chan error, 1)
				go func() {
					body, err := fetch(busy, g.url("/slow"))
					if err == nil && body != "done" {
						err = fmt.Errorf("answer %q", body)
					}
					answer <- err
				}()
				within(t, begun, "the slow request")
				drained, _ := g.begin(t, to)
				within(t, g.closed, "the idle connection's end")
				select {
				case err := <-drained:
					t.Fatalf("Drain has returned %v while a stream is open", err)
				case <-time.After(20 * time.Millisecond):
				}
				close(release)
				if err := within(t, answer, "the slow request's answer"); err != nil {
					t.Errorf("the slow request: %v", err)
				}
				if err := within(t, drained, "the drain's end"); err != nil {
					t.Errorf("Drain: %v", err)
				}
			})
		}
	}
}

// A client that has seen the GOAWAY, and the end of the stream after it, closes the
// connection: nobody waits for a second.
func TestHTTP2EndsWithItsGoAway(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"h2", "h2c", "h2 TLS 1.2"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			idle := make(chan bool, 1)
			g := serveHTTP2(t, kind, &http.Server{ConnState: func(_ net.Conn, state http.ConnState) {
				if state == http.StateIdle {
					idle <- true
				}
			}}, time.Hour)
			c := dial(t, g)
			if kind != "h2c" {
				config := clientTLS("h2")
				if kind != "h2" {
					config.MaxVersion = tls.VersionTLS12
				}
				c = newClient(t, tls.Client(c.Conn, config))
			}
			c.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00") // SETTINGS
			within(t, idle, "the server to know the connection as HTTP/2")
			// All that the server says by itself.
			for acknowledged, window := false, false; !acknowledged || !window; {
				f := c.frame()
				acknowledged = acknowledged || f[3] == 4 && f[4] == 1
				window = window || f[3] == 8
			}

			drained, _ := g.begin(t, handOver)
			if f := c.frame(); f[3] != 7 {
				t.Fatalf("the server sends frame %x in a drain, want GOAWAY", f)
			}
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after GOAWAY: %v, want io.EOF", err)
			}
			select {
			case <-g.closed:
				t.Error("the server has closed the connection, and not its own half only")
			case <-drained:
				t.Error("Drain has returned while the connection is open")
			case <-time.After(20 * time.Millisecond):
			}
			c.Close()
			if err := within(t, drained, "the drain's end"); err != nil {
				t.Errorf("Drain: %v", err)
			}
		})
	}
}

// frame reads an HTTP/2 frame.
func (c *client) frame() []byte {
	c.t.Helper()
	f := make([]byte, 9)
	if _, err := io.ReadFull(c, f); err != nil {
		c.t.Fatalf("reading a frame: %v", err)
	}
	body := make([]byte, int(f[0])<<16|int(f[1])<<8|int(f[2]))
	if _, err := io.ReadFull(c, body); err != nil {
		c.t.Fatalf("reading a frame: %v", err)
	}
	return append(f, body...)
}

// While a slow HTTP/1 request delays the GOAWAY, a request on an HTTP/2
// connection is its last.
func TestHTTP2RequestInADrainIsTheLast(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"h2", "h2c"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			begun, release := make(chan bool), make(chan bool)
			g := serveHTTP2(t, kind, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					begun <- true
					<-release
				}
				fmt.Fprint(w, "done")
			})}, time.Hour)
			slow := connect(t, g)
			slow.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
			within(t, begun, "the slow request")
			c := http2Client(t, g)
			if _, err := fetch(c, g.url("/")); err != nil {
				t.Fatal(err)
			}
			drained, _ := g.begin(t, handOver)
			if _, err := fetch(c, g.url("/")); err != nil {
				t.Errorf("a request in the drain: %v", err)
			}
			within(t, g.closed, "the connection's end")
			close(release)
			slow.expect("done")
			slow.Close()
			if err := within(t, drained, "the drain's end"); err != nil {
				t.Errorf("Drain: %v", err)
			}
		})
	}
}

// Clients are told to open a new connection one after the other.
func TestClientsTakeTurns(t *testing.T) {
	t.Parallel()
	const clients, quarters = 1000, 4
	n := &notice{spread: time.Hour}
	var found [quarters]int
	for port := range clients {
		remote := fmt.Sprint("192.0.2.1:", port)
		turn := n.turn(remote)
		if turn != n.turn(remote) {
			t.Fatalf("%s has two turns", remote)
		}
		found[turn*quarters/n.spread]++ // which panics beyond the last
	}
	for q, got := range found {
		if want := clients / quarters; got < want/2 || got > want*3/2 { // nine standard deviations
			t.Errorf("%d of %d clients have their turn in quarter %d of the time", got, clients, q)
		}
	}

	d := new(drain)
	r := &http.Request{ProtoMajor: 2, RemoteAddr: "192.0.2.1:1"}
	for _, test := range []struct {
		since time.Duration // their turn
		want  bool
	}{{-time.Minute, false}, {0, true}} {
		d.notice.Store(&notice{begin: time.Now().Add(-n.turn(r.RemoteAddr) - test.since), spread: n.spread})
		if d.tells(r) != test.want {
			t.Errorf("%v after a client's turn its answers tell it: %v", test.since, !test.want)
		}
	}
}

func TestTimeToTellClients(t *testing.T) {
	t.Parallel()
	const each = time.Minute
	for _, test := range []struct {
		name        string
		to          *handoff.Successor
		idle, limit time.Duration
		want        time.Duration
	}{
		{"each has its time", handOver, time.Hour, 0, 3 * each},
		{"within the idle grace", handOver, each, 0, each},
		{"a quarter of the drain timeout", handOver, 2 * each, 4 * each, each},
		{"and the idle grace in what is left", handOver, 10 * each, 12 * each, each},
		{"no time is left", handOver, 10 * each, 9 * each, 0},
		{"at a stop at once", stop, time.Hour, 0, 0},
	} {
		for _, kind := range []string{"tls", "h2", "h2c", "unix"} {
			t.Run(test.name+" "+kind, func(t *testing.T) {
				t.Parallel()
				began, release := make(chan bool), make(chan bool)
				defer close(release)
				srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/hijack" {
						nc, _, err := w.(http.Hijacker).Hijack()
						if err == nil {
							defer nc.Close()
						}
						began <- true
						<-release
					}
				})}
				var g *generation
				if strings.HasPrefix(kind, "h2") {
					g = serveHTTP2(t, kind, srv, test.idle)
				} else {
					g = serveKind(t, kind, srv, test.idle)
				}
				g.app.spreadEach = each
				for range 3 {
					if !strings.HasPrefix(kind, "h2") {
						c := connect(t, g)
						c.send(get)
						c.expect("")
					} else if _, err := fetch(http2Client(t, g), g.url("/")); err != nil {
						t.Fatal(err)
					}
				}
				connect(t, g).send("GET /hijack HTTP/1.1\r\nHost: x\r\n\r\n")
				within(t, began, "the hijack")
				d := &drain{server: g.server, stop: test.to == nil}
				if test.limit > 0 {
					d.deadline = time.Now().Add(test.limit)
				}
				d.give(false)
				want := test.want
				if kind == "unix" {
					want = 0 // their addresses are all the same
				}
				if got := d.notice.Load().spread; got > want || got < want-time.Second {
					t.Errorf("clients are told within %v, want %v", got, want)
				}
				if got, want := g.http2.Load(), map[string]int64{"h2": 3, "h2c": 3}[kind]; got != want {
					t.Errorf("%d connections speak HTTP/2, want %d", got, want)
				}
			})
		}
	}
}

func TestDrainKnowsItsDeadline(t *testing.T) {
	t.Parallel()
	g := serveKind(t, "tls", &http.Server{}, time.Minute)
	g.app.spreadEach = time.Hour
	connect(t, g)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	g.beginIn(t, ctx, handOver)
	if got := g.draining.Load().notice.Load().spread; got > 30*time.Second || got < 25*time.Second {
		t.Errorf("clients are told within %v of two minutes, want half a minute", got)
	}
}

// Until it is a client's turn, its HTTP/2 connection serves on as it did.
func TestHTTP2ServesUntilItsTurn(t *testing.T) {
	t.Parallel()
	const long = 1000 * time.Hour
	for _, kind := range []string{"h2", "h2c"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := serveHTTP2(t, kind, &http.Server{Handler: named("server")}, long)
			g.app.spreadEach = long
			c := http2Client(t, g)
			ask := func() {
				t.Helper()
				if body, err := fetch(c, g.url("/")); body != "server / 0" || err != nil {
					t.Errorf("%q, %v", body, err)
				}
			}
			ask()
			drained, _ := g.begin(t, handOver)
			for range 3 {
				ask() // nobody accepts another connection
			}
			select {
			case err := <-drained:
				t.Fatalf("Drain has returned %v before the client was told", err)
			case <-g.closed:
				t.Fatal("the connection is closed before the client was told")
			default:
			}
			g.draining.Load().notice.Store(new(notice))
			ask()
			within(t, g.closed, "the connection's end")
			if err := within(t, drained, "the drain's end"); err != nil {
				t.Errorf("Drain: %v", err)
			}
		})
	}
}

// A connection whose client is not told yet stays open while it is used, and for the
// grace time after.
func TestUntoldConnectionLapsesAfterItsLastAnswer(t *testing.T) {
	t.Parallel()
	const grace = 100 * time.Millisecond
	g := serveKind(t, "tls", &http.Server{Handler: named("server")}, grace)
	c := connect(t, g)
	c.send(get)
	c.expect("server / 0")
	g.begin(t, handOver)
	g.draining.Load().notice.Store(&notice{begin: time.Now(), spread: 1000 * time.Hour})
	pace := time.NewTicker(grace / 4)
	defer pace.Stop()
	last := time.Now()
	for range 12 {
		<-pace.C
		if time.Since(last) > grace*3/4 {
			t.Skip("this machine is too busy")
		}
		last = time.Now()
		c.send(get)
		if resp := c.expect("server / 0"); resp.Close {
			t.Fatal("the client was told before its turn")
		}
	}
	c.expectEnd()
	if took := time.Since(last); took < grace {
		t.Errorf("the connection has ended %v after its last answer, want %v", took, grace)
	}
}

// Those that ask for nothing are told when all others were.
func TestIdleHTTP2IsToldLast(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"h2", "h2c"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const spread = 50 * time.Millisecond
			g := serveHTTP2(t, kind, &http.Server{Handler: named("server")}, time.Hour)
			g.app.spreadEach = spread
			if _, err := fetch(http2Client(t, g), g.url("/")); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			drained, _ := g.begin(t, handOver)
			if err := within(t, drained, "the drain's end"); err != nil {
				t.Errorf("Drain: %v", err)
			}
			if took := time.Since(start); took < spread {
				t.Errorf("drained within %v, want at least %v", took, spread)
			}
		})
	}
}

func TestH2CPrefaceInPieces(t *testing.T) {
	t.Parallel()
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	for _, piece := range []int{1, 3, 8, 14, 20} {
		t.Run(fmt.Sprint(piece), func(t *testing.T) {
			t.Parallel()
			idle := make(chan bool, 1)
			srv := &http.Server{ConnState: func(_ net.Conn, state http.ConnState) {
				if state == http.StateIdle {
					idle <- true
				}
			}}
			asks := make(chan int, 100)
			srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
				(&tap{asks: asks}).on(c)
				return ctx
			}
			enableH2C(srv)
			g := serveGeneration(t, "tcp", srv, time.Hour)
			c := connect(t, g)
			within(t, asks, "the server to read")
			c.send(preface[:piece])
			within(t, asks, "the server to read more")
			c.send(preface[piece:] + "\x00\x00\x00\x04\x00\x00\x00\x00\x00") // SETTINGS
			within(t, idle, "the server to know the connection as HTTP/2")
			drained, _ := g.begin(t, handOver)
			var got []byte
			for !strings.Contains(string(got), "\x00\x00\x08\x07\x00\x00\x00\x00\x00") {
				b, err := c.answers.ReadByte()
				if err != nil {
					t.Fatalf("the connection brings %q, %v; want GOAWAY", got, err)
				}
				got = append(got, b)
			}
			c.Close()
			if err := within(t, drained, "the drain's end"); err != nil {
				t.Errorf("Drain: %v", err)
			}
		})
	}
}

// A protocol that the program has in TLSNextProto is like a hijacked connection.
func TestOwnProtocolIsWaitedFor(t *testing.T) {
	t.Parallel()
	begun := make(chan bool, 1)
	srv := &http.Server{TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){
		"lines": func(_ *http.Server, c *tls.Conn, _ http.Handler) {
			begun <- true
			io.Copy(c, c)
		},
	}}
	srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate().cert}, NextProtos: []string{"lines"}}
	g := serveGeneration(t, "tcp", srv, 20*time.Millisecond)
	raw := dial(t, g)
	c := newClient(t, tls.Client(raw.Conn, clientTLS("lines")))
	c.send("a")
	within(t, begun, "the protocol's function")
	drained, _ := g.begin(t, handOver)
	select {
	case err := <-drained:
		t.Fatalf("Drain has returned %v", err)
	case <-time.After(100 * time.Millisecond): // five times the grace
	}
	c.send("b\n")
	if line, err := c.answers.ReadString('\n'); line != "ab\n" {
		t.Errorf("the connection brings %q, %v", line, err)
	}
	c.Close()
	if err := within(t, drained, "the drain's end"); err != nil {
		t.Errorf("Drain: %v", err)
	}
}

// Who comes during the drain waits for the successor to accept, or for the
// server to serve again.
func TestDrainAcceptsNothing(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := serveKind(t, kind, &http.Server{Handler: named("server")}, time.Hour)
			idle := connect(t, g) // the drain cannot end
			idle.send(get)
			idle.expect("server / 0")
			drained, cancel := g.begin(t, handOver)
			late := dial(t, g)
			if kind == "tls" {
				late = newClient(t, tls.Client(late.Conn, clientTLS("http/1.1")))
			}
			sent := make(chan error, 1)
			go func() {
				_, err := io.WriteString(late.Conn, get)
				sent <- err
			}()
			select {
			case <-g.accepted:
				t.Error("a connection was accepted during the drain")
			case <-time.After(50 * time.Millisecond):
			}
			cancel()
			within(t, drained, "the drain's end")
			g.Resume()
			if err := within(t, sent, "the request to be sent"); err != nil {
				t.Fatal(err)
			}
			if resp := late.expect("server / 0"); resp.Close {
				t.Error("the answer says Connection: close")
			}
		})
	}
}

// A drain that is called off before its end has changed nothing for clients.
func TestDrainCalledOffLeavesConnectionsAlone(t *testing.T) {
	t.Parallel()
	const grace = 50 * time.Millisecond
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			begun, release := make(chan bool), make(chan bool)
			g := serveKind(t, kind, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/slow" {
					begun <- true
					<-release
				}
				fmt.Fprint(w, "done")
			})}, grace)
			idle, busy := connect(t, g), connect(t, g)
			idle.send(get)
			idle.expect("done")
			busy.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
			within(t, begun, "the slow request")
			drained, cancel := g.begin(t, handOver)
			d := g.draining.Load()
			cancel()
			if err := within(t, drained, "the drain's end"); !errors.Is(err, context.Canceled) {
				t.Errorf("Drain: %v, want that it was called off", err)
			}
			g.Resume()
			g.kickAndLook(t, d) // as its timer does
			close(release)
			busy.expect("done")
			for _, c := range []*client{idle, busy, connect(t, g)} {
				c.send(get)
				if resp := c.expect("done"); resp.Close {
					t.Error("an answer says Connection: close after the drain")
				}
			}
		})
	}
}

// When the successor fails as late as can be, everything works as before.
func TestResumesAfterShutdown(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"tcp", "unix", "tls", "h2", "h2c"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			states := make(chan http.ConnState, 100)
			srv := &http.Server{
				Handler:   named("server"),
				ConnState: func(_ net.Conn, state http.ConnState) { states <- state },
				BaseContext: func(net.Listener) context.Context {
					return context.WithValue(context.Background(), contextKey{}, "base")
				},
			}
			var g *generation
			switch kind {
			case "h2", "h2c":
				g = serveHTTP2(t, kind, srv, time.Millisecond)
			default:
				g = serveKind(t, kind, srv, time.Millisecond)
			}
			// Each time it serves, drains to the end, and resumes.
			for range 2 {
				for range 2 {
					if strings.HasPrefix(kind, "h2") {
						c := http2Client(t, g)
						for range 2 {
							if body, err := fetch(c, g.url("/")); err != nil || body != "server / 0" {
								t.Fatalf("answer %q, %v", body, err)
							}
						}
						continue
					}
					c := connect(t, g)
					for range 2 {
						c.send(get)
						if resp := c.expect("server / 0"); resp.Close {
							t.Error("an answer says Connection: close")
						}
					}
				}
				for state := http.ConnState(-1); state != http.StateIdle; {
					state = within(t, states, "the program's ConnState to be called")
				}
				drained, _ := g.begin(t, handOver)
				if err := within(t, drained, "the drain's end"); err != nil {
					t.Fatalf("Drain: %v", err)
				}
				g.Resume()
			}
			select {
			case err := <-g.served:
				t.Errorf("Serve has returned %v", err)
			default:
			}
		})
	}
}

type contextKey struct{}

// A successor may fail at any moment, also just when net/http's Shutdown was
// called and has not run its hooks.
func TestResumesRepeatedly(t *testing.T) {
	t.Parallel()
	g := serveGeneration(t, "tcp", &http.Server{Handler: named("server")}, 0)
	for range 200 {
		if err := g.Drain(context.Background(), handOver); err != nil {
			t.Fatal(err)
		}
		g.Resume()
		c := dial(t, g)
		c.send(get)
		c.expect("server / 0")
		c.Close()
	}
	select {
	case err := <-g.served:
		t.Errorf("Serve has returned %v", err)
	default:
	}
}

func TestResumesAfterShutdownByTheProgram(t *testing.T) {
	t.Parallel()
	srv := &http.Server{Handler: named("server")}
	g := serveGeneration(t, "tcp", srv, 0)
	c := connect(t, g)
	c.send(get)
	c.expect("server / 0")
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := within(t, g.served, "the end of Serve"); err != http.ErrServerClosed {
		t.Errorf("Serve: %v, want http.ErrServerClosed", err)
	}
	if err := g.Drain(context.Background(), handOver); err != nil {
		t.Fatal(err)
	}
	resumed := make(chan bool)
	go func() {
		g.Resume()
		close(resumed)
	}()
	within(t, resumed, "Resume to return")
}

// The program's Shutdown is meant for whatever serves in its server's place.
func TestShutdownByTheProgramAfterResume(t *testing.T) {
	t.Parallel()
	srv := &http.Server{Handler: named("server")}
	g := serveGeneration(t, "tcp", srv, 0)
	for range 2 {
		if err := g.Drain(context.Background(), handOver); err != nil {
			t.Fatal(err)
		}
		g.Resume()
		c := connect(t, g)
		c.send(get)
		c.expect("server / 0")
		c.Close()
	}
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := within(t, g.served, "the end of Serve"); err != http.ErrServerClosed {
		t.Errorf("Serve: %v, want http.ErrServerClosed", err)
	}
}

// A deadline that the user's hook sets is not taken for net/http's.
func TestDeadlineOfAConnStateHookDoesNotHoldUpTheDrain(t *testing.T) {
	srv := &http.Server{Handler: named("server"), ConnState: func(c net.Conn, state http.ConnState) {
		if state == http.StateIdle {
			c.SetReadDeadline(time.Now().Add(time.Hour))
		}
	}}
	g := serveGeneration(t, "tcp", srv, time.Hour)
	c := dial(t, g)
	c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	c.expect("server / 0")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := g.Drain(ctx, nil); err != nil {
		t.Error(err)
	}
	c.expectEnd()
}

func TestDeadlineErrorsAreThoseOfPackageNet(t *testing.T) {
	g := serveGeneration(t, "tcp", &http.Server{Handler: named("server")}, time.Hour)
	nc, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	wrapped, _ := g.wrap(nc)
	nc.Close()
	if err := wrapped.SetDeadline(time.Now()); err == nil {
		t.Error("a closed connection has a deadline")
	} else if _, ok := err.(net.Error); !ok {
		t.Errorf("%T, want a net.Error", err)
	}
}
