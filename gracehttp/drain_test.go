//go:build unix

package gracehttp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/testserver/driver"
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
	done, before := make(chan error, 1), g.draining.Load()
	go func() { done <- g.Drain(ctx, handoff.Drain{To: to}) }()
	driver.Eventually(t, "the drain to begin", func() bool { return g.draining.Load() != before })
	return done, cancel
}

// Without a successor nobody tells an idle client before it sends: it has a second for
// that. SIGINT does not wait.
func TestStopLeavesIdleConnectionsASecond(t *testing.T) {
	t.Parallel()
	for _, quick := range []bool{false, true} {
		for _, kind := range kinds {
			t.Run(fmt.Sprintf("%s quick=%v", kind, quick), func(t *testing.T) {
				t.Parallel()
				g := serveKind(t, kind, &http.Server{Handler: named("server")}, time.Hour)
				used, fresh := connect(t, g), connect(t, g)
				used.ask()
				start := time.Now()
				drained := make(chan error, 1)
				go func() { drained <- g.Drain(context.Background(), handoff.Drain{Quick: quick}) }()
				used.expectEnd()
				if kind == "tls" {
					fresh = newClient(t, fresh.Conn.(*tls.Conn).NetConn())
				}
				fresh.expectEnd()
				if lasted := time.Since(start); quick != (lasted < stopGrace) {
					t.Errorf("idle connections have ended after %v", lasted)
				}
				ends(t, drained)
				if c := g.Count(); c.Idle != 2 || c.Open != 0 {
					t.Errorf("counted %+v, want 2 idle ones", c)
				}
			})
		}
	}
}

// All of them closed in one instant would come back in one.
func TestStopEndsIdleConnectionsOneAfterTheOther(t *testing.T) {
	t.Parallel()
	g := serveKind(t, "tcp", &http.Server{Handler: named("server")}, time.Hour)
	g.app.drainRate = 20
	var clients []*client
	for range 10 {
		clients = append(clients, connect(t, g))
	}
	start := time.Now()
	drained, _ := g.begin(t, stop)
	for _, c := range clients {
		c.expectEnd()
	}
	if took := time.Since(start); took < stopGrace+9*time.Second/20 {
		t.Errorf("10 connections have ended within %v, at a rate of 20 a second", took)
	}
	ends(t, drained)
}

// The handler does not read the first request's body, so that net/http leaves
// the second request in the socket until the first one is answered.
func TestStopAnswersRequestThatWaits(t *testing.T) {
	t.Parallel()
	driver.Each(t, kinds, func(t *testing.T, kind string) {
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
		ends(t, drained)
	})
}

func TestStopAnswersWhatWasSentBefore(t *testing.T) {
	t.Parallel()
	driver.Each(t, kinds, func(t *testing.T, kind string) {
		g := serveKind(t, kind, &http.Server{Handler: named("server")}, time.Hour)
		clients := make([]*client, 30)
		for i := range clients {
			clients[i] = connect(t, g)
			clients[i].ask()
		}
		for _, c := range clients {
			c.send(get)
		}
		drained, _ := g.begin(t, stop)
		for _, c := range clients {
			c.expect("server / 0")
			c.expectEnd()
		}
		ends(t, drained)
	})
}

func TestStopAnswersTheBacklog(t *testing.T) {
	t.Parallel()
	driver.Each(t, kinds, func(t *testing.T, kind string) {
		g := serveKind(t, kind, &http.Server{Handler: named("server")}, time.Minute)
		g.listener.Pause() // as if the process had no time to accept
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
		ends(t, drained)
	})
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
	ends(t, drained)
	return time.Since(answered)
}

func TestClientsAreToldToGoElsewhere(t *testing.T) {
	t.Parallel()
	driver.Each(t, kinds, func(t *testing.T, kind string) {
		g := serveKind(t, kind, &http.Server{Handler: named("server")}, time.Hour)
		c := connect(t, g)
		if resp := c.ask(); resp.Close {
			t.Fatal("an answer says Connection: close before the drain")
		}
		drained, _ := g.begin(t, handOver)
		if resp := c.ask(); !resp.Close {
			t.Error("an answer in a drain does not say Connection: close")
		}
		c.expectEnd()
		ends(t, drained)
	})
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
	driver.Each(t, kinds, func(t *testing.T, kind string) {
		g := serveKind(t, kind, &http.Server{Handler: named("server")}, grace)
		idle, used := connect(t, g), connect(t, g)
		for _, c := range []*client{idle, used} {
			c.ask()
		}
		start := time.Now()
		drained, _ := g.begin(t, handOver)
		used.ask()
		idle.expectEnd()
		if lasted := time.Since(start); lasted < grace {
			t.Errorf("an idle connection was closed after %v, want %v", lasted, grace)
		}
		ends(t, drained)
	})
}

// Whether an answer is the last is decided when its header is written: the handler may
// have begun before the drain.
func TestAnswerUnderWayTellsItsClient(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(w http.ResponseWriter){
		"nothing":     func(w http.ResponseWriter) {},
		"WriteHeader": func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) },
		"early hints": func(w http.ResponseWriter) { w.WriteHeader(http.StatusEarlyHints); io.WriteString(w, "") },
		"Write":       func(w http.ResponseWriter) { w.Write([]byte("x")) },
		"WriteString": func(w http.ResponseWriter) { io.WriteString(w, "x") },
		"ReadFrom":    func(w http.ResponseWriter) { w.(io.ReaderFrom).ReadFrom(strings.NewReader("x")) },
		"Flush":       func(w http.ResponseWriter) { w.(http.Flusher).Flush() },
		"Controller":  func(w http.ResponseWriter) { http.NewResponseController(w).Flush() },
		"its own":     func(w http.ResponseWriter) { w.Header().Set("Connection", "keep-alive"); io.WriteString(w, "x") },
	} {
		for _, to := range []*handoff.Successor{stop, handOver} {
			for _, kind := range []string{"tcp", "tls"} {
				t.Run(fmt.Sprintf("%s %s handOver=%v", name, kind, to != nil), func(t *testing.T) {
					t.Parallel()
					begun, release := make(chan bool), make(chan bool)
					g := serveKind(t, kind, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						begun <- true
						<-release
						write(w)
					})}, time.Hour)
					c := connect(t, g)
					c.send(get)
					within(t, begun, "the request")
					drained, _ := g.begin(t, to)
					close(release)
					resp, _ := c.answer()
					for resp.StatusCode < 200 {
						resp, _ = c.answer()
					}
					if !resp.Close {
						t.Error("the answer does not say Connection: close")
					}
					c.expectEnd()
					ends(t, drained)
					if n := g.Count().Told; n != 1 {
						t.Errorf("%d clients are counted as told, want 1", n)
					}
				})
			}
		}
	}
}

// What net/http's own writer has, an answer's has too: on any release of Go.
func TestAnswersWriterHasAllMethods(t *testing.T) {
	t.Parallel()
	missing := make(chan []string, 1)
	plain := make(chan reflect.Type, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { plain <- reflect.TypeOf(w) })}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	g := serveKind(t, "tcp", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var names []string
		ours, its := reflect.TypeOf(w), <-plain
		for i := range its.NumMethod() {
			m := its.Method(i)
			if own, ok := ours.MethodByName(m.Name); !ok || own.Type.NumIn() != m.Type.NumIn() {
				names = append(names, m.Name)
			}
		}
		missing <- names
	})}, 0)
	for _, addr := range []string{l.Addr().String(), g.addr} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, get)
	}
	if names := within(t, missing, "the handler"); len(names) > 0 {
		t.Errorf("the handler's writer has no %q", names)
	}
}

// A client to which nothing was said, since the header was out before the drain, has the
// grace time from the end of its answer on.
func TestGraceBeginsWithTheAnswer(t *testing.T) {
	t.Parallel()
	driver.NotShort(t)
	const grace = 1500 * time.Millisecond
	driver.Each(t, kinds, func(t *testing.T, kind string) {
		begun, release, waits := make(chan bool), make(chan bool), make(chan bool, 10)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				w.Header().Set("Content-Length", "4")
				w.(http.Flusher).Flush()
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
		answered := time.Now()
		close(release)
		c.expect("done")
		c.expectEnd()
		if lasted := time.Since(answered); lasted < grace {
			t.Errorf("the connection has ended %v after its answer, want %v", lasted, grace)
		}
	})
}

// A grace time that is longer than the drain would let it fail.
func TestIdleConnectionsDoNotUseUpTheDrain(t *testing.T) {
	t.Parallel()
	driver.Each(t, kinds, func(t *testing.T, kind string) {
		handler, begun, release := slowHandler()
		g := serveKind(t, kind, &http.Server{Handler: handler}, time.Hour)
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
				shutdown := make(chan bool, 1)
				srv := &http.Server{Handler: http.HandlerFunc(echo)}
				srv.RegisterOnShutdown(func() { shutdown <- true })
				g := serveKind(t, kind, srv, 10*time.Millisecond)
				c := connect(t, g)
				c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				if resp, err := http.ReadResponse(c.answers, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
					t.Fatalf("answer: %v, %v", resp, err)
				}
				drained, _ := g.begin(t, to)
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
				ends(t, drained)
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
				if err := g.Drain(ctx, handoff.Drain{To: to}); !errors.Is(err, context.DeadlineExceeded) {
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

// What is left in the end, or when the program closes its server in a drain, is closed at
// once: no client is waited for, one after the other.
func TestCloseWaitsForNobody(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		for name, end := range map[string]func(*generation, *http.Server){
			"cut":   func(g *generation, _ *http.Server) { g.cut() },
			"Close": func(_ *generation, srv *http.Server) { srv.Close() },
		} {
			t.Run(kind+" "+name, func(t *testing.T) {
				t.Parallel()
				const clients = 8
				begun := make(chan bool)
				srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					begun <- true
					<-r.Context().Done()
				})}
				g := serveKind(t, kind, srv, time.Minute)
				for range clients {
					c := connect(t, g)
					c.send(get)
					within(t, begun, "the request")
					c.send(strings.Repeat("x", 100_000)) // which nobody reads
				}
				driver.Eventually(t, "the input to arrive", func() bool {
					return !slices.ContainsFunc(g.listener.Entries(), func(e *accept.Entry) bool { return !e.Conn.(*conn).hasInput() })
				})
				g.begin(t, handOver)
				start := time.Now()
				end(g, srv)
				if took := time.Since(start); took > clients*lingerTimeout/2 {
					t.Errorf("closing %d connections took %v", clients, took)
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
				handler, begun, release := slowHandler()
				g := serveHTTP2(t, kind, &http.Server{Handler: handler}, time.Hour)
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
				ends(t, drained)
			})
		}
	}
}

// While a slow HTTP/1 request delays the GOAWAY, a request on an HTTP/2
// connection is its last.
func TestHTTP2RequestInADrainIsTheLast(t *testing.T) {
	t.Parallel()
	driver.Each(t, []string{"h2", "h2c"}, func(t *testing.T, kind string) {
		handler, begun, release := slowHandler()
		g := serveHTTP2(t, kind, &http.Server{Handler: handler}, time.Hour)
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
		ends(t, drained)
	})
}

// At most so many clients a second are told, or their idle connections ended, whatever
// the other options are.
func TestDrainRateBoundsWhoLeaves(t *testing.T) {
	t.Parallel()
	const rate = 100
	for _, test := range []struct {
		name        string
		how         string
		idle, limit time.Duration
		count       int
		told, apart time.Duration // between two that are told, or ended
		idleFrom    time.Duration
	}{
		{"a handoff", "handoff", 5 * time.Second, time.Minute, 1000, 10 * time.Millisecond, 10 * time.Millisecond, 5 * time.Second},
		{"a long idle grace", "handoff", time.Hour, time.Minute, 1000, 10 * time.Millisecond, 10 * time.Millisecond, 35 * time.Second},
		{"many", "handoff", 5 * time.Second, time.Minute, 30_000, time.Millisecond, time.Millisecond, 5 * time.Second},
		{"many, and a long idle grace", "handoff", time.Hour, time.Minute, 30_000, time.Millisecond, time.Millisecond, 15 * time.Second},
		{"no drain timeout", "handoff", time.Hour, 0, 30_000, 10 * time.Millisecond, 10 * time.Millisecond, time.Hour},
		{"a stop", "stop", time.Second, time.Minute, 50, 0, 10 * time.Millisecond, time.Second},
		{"a stop of many", "stop", time.Second, time.Minute, 1000, 0, time.Millisecond, time.Second},
		{"SIGINT", "SIGINT", 0, time.Minute, 1000, 0, 0, 0},
		{"a lame duck", "lame duck", 0, time.Minute, 1000, 10 * time.Millisecond, 0, 0},
		{"a short lame duck", "lame duck", 0, 2 * time.Second, 1000, time.Millisecond, 0, 0},
	} {
		for _, kind := range []string{"tcp", "unix"} {
			t.Run(test.name+" "+kind, func(t *testing.T) {
				t.Parallel()
				g := serveKind(t, kind, &http.Server{}, test.idle)
				g.app.drainRate = rate
				for range test.count {
					e := &accept.Entry{Conn: new(conn)}
					g.listener.Add(e)
					g.listener.SetKind(e, accept.HTTP2)
					defer g.listener.Remove(e)
				}
				now := time.Now()
				d := &drain{server: g.server, grace: test.idle, begin: now,
					stop: test.how == "stop" || test.how == "SIGINT", quick: test.how == "SIGINT", lameDuck: test.how == "lame duck"}
				if test.limit > 0 {
					d.deadline = now.Add(test.limit)
					d.idleEnd = now.Add(test.limit * 3 / 4)
				}
				d.newPace(false)
				p := d.pace.Load()
				near := func(got, want time.Duration) bool { return got <= want && got > want*9/10-1 }
				if kind == "unix" { // on the other end is a proxy, or another program of this machine
					if p.told.each != 0 || p.idle != 0 {
						t.Errorf("unix sockets: %v and %v apart", p.told.each, p.idle)
					}
					return
				}
				if !near(p.told.each, test.told) || !near(p.idle, test.apart) {
					t.Errorf("told each %v, want %v; ended each %v, want %v", p.told.each, test.told, p.idle, test.apart)
				}
				if from := p.idleFrom.Sub(now); from.Round(time.Second) != test.idleFrom {
					t.Errorf("idle connections end from %v on, want %v", from, test.idleFrom)
				}
			})
		}
	}
}

func TestDrainKnowsItsDeadline(t *testing.T) {
	t.Parallel()
	g := serveKind(t, "tls", &http.Server{}, time.Minute)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	now := time.Now()
	connect(t, g)
	g.beginIn(t, ctx, handOver)
	d := g.draining.Load()
	if end, middle := d.idleEnd.Sub(now), d.middle.Sub(now); end.Round(time.Second) != 90*time.Second || middle.Round(time.Second) != time.Minute {
		t.Errorf("of two minutes, idle connections end at %v, and those that do not move are told at %v", end, middle)
	}
}

// Until it is a client's turn, its HTTP/2 connection serves on as it did.
func TestHTTP2ServesUntilItsTurn(t *testing.T) {
	t.Parallel()
	driver.NotShort(t)
	driver.Each(t, []string{"h2", "h2c"}, func(t *testing.T, kind string) {
		g := serveHTTP2(t, kind, &http.Server{Handler: named("server")}, time.Hour)
		g.app.drainRate = 1
		first, second := http2Client(t, g), http2Client(t, g)
		ask := func(c *http.Client) {
			t.Helper()
			if body, err := fetch(c, g.url("/")); body != "server / 0" || err != nil {
				t.Errorf("%q, %v", body, err)
			}
		}
		ask(first)
		ask(second)
		start := time.Now()
		drained, _ := g.begin(t, handOver)
		ask(first)
		pace := time.NewTicker(10 * time.Millisecond)
		defer pace.Stop()
		for time.Since(start) < 900*time.Millisecond {
			ask(second) // nobody accepts another connection
			<-pace.C
		}
		if n := g.Count().Told; n != 1 && (n == 0 || time.Since(start) < time.Second) {
			t.Errorf("%d clients are told within a second, want 1", n)
		}
		ends(t, drained)
	})
}

// A connection whose client is not told yet stays open while it is used, and for the
// grace time after.
func TestUntoldConnectionEndsAfterItsLastAnswer(t *testing.T) {
	t.Parallel()
	const grace = 100 * time.Millisecond
	g := serveKind(t, "tls", &http.Server{Handler: named("server")}, grace)
	c := connect(t, g)
	c.ask()
	g.begin(t, handOver)
	g.draining.Load().pace.Store(&pace{told: turns{from: time.Now().Add(time.Hour)}, idleFrom: time.Now().Add(grace)})
	pace := time.NewTicker(grace / 4)
	defer pace.Stop()
	last := time.Now()
	for range 12 {
		<-pace.C
		if time.Since(last) > grace*3/4 {
			t.Skip("this machine is too busy")
		}
		last = time.Now()
		if resp := c.ask(); resp.Close {
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
	driver.Each(t, []string{"h2", "h2c"}, func(t *testing.T, kind string) {
		const spread = 50 * time.Millisecond
		g := serveHTTP2(t, kind, &http.Server{Handler: named("server")}, time.Hour)
		g.app.drainRate = int(time.Second / spread)
		if _, err := fetch(http2Client(t, g), g.url("/")); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		drained, _ := g.begin(t, handOver)
		ends(t, drained)
		if took := time.Since(start); took < spread {
			t.Errorf("drained within %v, want at least %v", took, spread)
		}
	})
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
			ends(t, drained)
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
	ends(t, drained)
}

// Who comes during the drain waits for the successor to accept, or for the
// server to serve again.
func TestDrainAcceptsNothing(t *testing.T) {
	t.Parallel()
	driver.Each(t, kinds, func(t *testing.T, kind string) {
		g := serveKind(t, kind, &http.Server{Handler: named("server")}, time.Hour)
		idle := connect(t, g) // the drain cannot end
		idle.ask()
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

// A drain that is called off before its end has changed nothing for clients.
func TestDrainCalledOffLeavesConnectionsAlone(t *testing.T) {
	t.Parallel()
	driver.Each(t, kinds, func(t *testing.T, kind string) {
		handler, begun, release := slowHandler()
		g := serveKind(t, kind, &http.Server{Handler: handler}, time.Hour)
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
		d.pace.Store(&pace{told: turns{from: d.begin}, idleFrom: d.begin}) // the grace is over
		g.wakeAndLook(t, d)                                                // as its timer does
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

// When the successor fails as late as can be, everything works as before.
func TestResumesAfterShutdown(t *testing.T) {
	t.Parallel()
	driver.Each(t, driver.Some([]string{"tcp", "unix", "tls", "h2", "h2c"}, 1), func(t *testing.T, kind string) {
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
					if resp := c.ask(); resp.Close {
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

type contextKey struct{}

// A successor may fail at any moment, also just when net/http's Shutdown was
// called and has not run its hooks.
func TestResumesRepeatedly(t *testing.T) {
	t.Parallel()
	g := serveGeneration(t, "tcp", &http.Server{Handler: named("server")}, 0)
	for range 200 {
		if err := g.Drain(context.Background(), handoff.Drain{To: handOver}); err != nil {
			t.Fatal(err)
		}
		g.Resume()
		c := dial(t, g)
		c.ask()
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
	c.ask()
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := within(t, g.served, "the end of Serve"); err != http.ErrServerClosed {
		t.Errorf("Serve: %v, want http.ErrServerClosed", err)
	}
	if err := g.Drain(context.Background(), handoff.Drain{To: handOver}); err != nil {
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
		if err := g.Drain(context.Background(), handoff.Drain{To: handOver}); err != nil {
			t.Fatal(err)
		}
		g.Resume()
		c := connect(t, g)
		c.ask()
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
	t.Parallel()
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
	if err := g.Drain(ctx, handoff.Drain{}); err != nil {
		t.Error(err)
	}
	c.expectEnd()
}

func TestDeadlineErrorsAreThoseOfPackageNet(t *testing.T) {
	t.Parallel()
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

// A connection whose next request is there before its handler returns is never idle: it
// can neither move nor end between two. From the middle of the drain on it is told.
func TestConnectionThatIsNeverIdleIsTold(t *testing.T) {
	t.Parallel()
	begun, next := make(chan bool, 10), make(chan bool)
	g := serveGeneration(t, "tcp", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		begun <- true
		<-next
		fmt.Fprint(w, "done")
	})}, time.Hour)
	defer close(next)
	c := connect(t, g)
	post := "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody\r\n" // with a line break, as some do
	c.send(post)
	within(t, begun, "the request")
	d := g.moveBy(t, func([]syscall.Conn) error { return nil })
	ask := func() *http.Response {
		c.send(post)
		next <- true
		return c.expect("done")
	}
	for range 3 {
		if resp := ask(); resp.Close {
			t.Fatal("the client of a connection that is to move is told early in the drain")
		}
	}
	late := &drain{server: g.server, mover: d.mover, grace: d.grace, begin: d.begin, middle: time.Now()}
	late.pace.Store(d.pace.Load())
	g.draining.Store(late)
	if resp := ask(); !resp.Close {
		t.Error("the client is not told after the middle of the drain")
	}
}

// Some clients ask for an upgrade in each request. Only an answer 101 is one.
func TestClientThatAlwaysAsksForAnUpgradeIsTold(t *testing.T) {
	t.Parallel()
	for _, to := range []*handoff.Successor{stop, handOver} {
		g := serveGeneration(t, "tcp", &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/upgrade" {
				w.Header().Set("Connection", "Upgrade")
				w.Header().Set("Upgrade", "echo")
				w.WriteHeader(http.StatusSwitchingProtocols)
			}
		})}, time.Hour)
		upgraded, c := connect(t, g), connect(t, g)
		g.begin(t, to)
		const header = " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: TLS/1.2\r\n\r\n"
		c.send("GET /" + header)
		if resp := c.expect(""); !resp.Close {
			t.Error("the answer does not say Connection: close")
		}
		upgraded.send("GET /upgrade" + header)
		if resp, err := http.ReadResponse(upgraded.answers, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Connection") != "Upgrade" {
			t.Errorf("answer to an upgrade: %v, %v", resp, err)
		}
	}
}

// net/http would answer this by itself, and tell nobody.
func TestOptionsAnswerTellsItsClient(t *testing.T) {
	t.Parallel()
	for _, kind := range kinds {
		g := serveKind(t, kind, &http.Server{Handler: named("server")}, time.Hour)
		own := serveKind(t, kind, &http.Server{Handler: named("server"), DisableGeneralOptionsHandler: true}, time.Hour)
		c, toHandler := connect(t, g), connect(t, own)
		const options = "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"
		c.send(options)
		if resp := c.expect(""); resp.Header.Get("Content-Length") != "0" {
			t.Errorf("%s: the answer has %v", kind, resp.Header)
		}
		toHandler.send(options)
		toHandler.expect("server * 0")
		g.begin(t, handOver)
		c.send(options)
		if resp := c.expect(""); !resp.Close {
			t.Errorf("%s: the answer in a drain does not say Connection: close", kind)
		}
	}
}

// A deadline that the program sets on an idle connection is the program's: the
// connection is idle all the same.
func TestDeadlineOfTheProgramKeepsNoConnection(t *testing.T) {
	t.Parallel()
	for _, deadline := range []time.Duration{0, time.Hour, 300 * time.Millisecond} {
		for _, kind := range kinds {
			t.Run(fmt.Sprintf("%s %v", kind, deadline), func(t *testing.T) {
				t.Parallel()
				grace, want := time.Second, time.Second
				if deadline > 0 && deadline < grace { // which ends it long before the grace does
					grace, want = time.Hour, deadline
				}
				conns := make(chan net.Conn, 1)
				asks := make(chan int, 10)
				g := serveKind(t, kind, &http.Server{Handler: named("server"), ConnContext: func(ctx context.Context, c net.Conn) context.Context {
					(&tap{asks: asks}).on(c)
					conns <- c
					return ctx
				}}, grace)
				set := func(c net.Conn) {
					at := time.Time{}
					if deadline > 0 {
						at = time.Now().Add(deadline)
					}
					c.SetReadDeadline(at)
				}
				c := connect(t, g)
				c.ask()
				theirs := within(t, conns, "the connection")
				driver.Eventually(t, "the server to wait for a request", func() bool { return coreOf(theirs).is(waiting) })
				start := time.Now()
				set(theirs)
				drained, _ := g.begin(t, handOver)
				set(theirs) // also while the drain's deadline is set
				c.expectEnd()
				if lasted := time.Since(start); lasted < want {
					t.Errorf("the connection has ended after %v, want %v", lasted, want)
				}
				ends(t, drained)
			})
		}
	}
}

// To close a connection with unread input would reset it, and destroy what the client has
// not received.
func TestLastAnswerArrivesThoughTheClientSendsOn(t *testing.T) {
	t.Parallel()
	const size = 1_500_000
	driver.Each(t, kinds, func(t *testing.T, kind string) {
		g := serveKind(t, kind, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, strings.Repeat("x", size))
		})}, time.Hour)
		c := connect(t, g)
		if kind == "tls" {
			c.send("HEAD / HTTP/1.1\r\nHost: x\r\n\r\n") // the handshake
			http.ReadResponse(c.answers, &http.Request{Method: "HEAD"})
		}
		drained, _ := g.begin(t, handOver)
		g.draining.Load().middle = time.Now().Add(-time.Hour)
		c.send(get)
		sent := make(chan bool)
		go func() {
			defer close(sent)
			for range 20 {
				io.WriteString(c.Conn, strings.Repeat(get, 100))
			}
		}()
		resp, err := http.ReadResponse(c.answers, nil)
		if err != nil {
			t.Fatal(err)
		}
		<-sent
		body, err := io.ReadAll(resp.Body)
		if len(body) != size || err != nil || !resp.Close {
			t.Errorf("the last answer brings %d of %d bytes, %v", len(body), size, err)
		}
		c.Close()
		ends(t, drained)
	})
}

// OnDrain is a place where programs end what they can: what net/http would close there
// is ended by the drain, and the keep-alives are back if the successor fails.
func TestProgramsSetKeepAlivesEnabledIsHarmless(t *testing.T) {
	t.Parallel()
	driver.Each(t, []string{"tcp", "unix"}, func(t *testing.T, kind string) {
		srv := &http.Server{Handler: named("server")}
		g := serveKind(t, kind, srv, time.Hour)
		used, other := connect(t, g), connect(t, g)
		for _, c := range []*client{used, other} {
			c.ask()
		}
		driver.Eventually(t, "the server to wait for requests", func() bool {
			return !slices.ContainsFunc(g.listener.Entries(), func(e *accept.Entry) bool { return !e.Conn.(*conn).is(waiting) })
		})
		drained, cancel := g.begin(t, handOver)
		srv.SetKeepAlivesEnabled(false)
		if resp := used.ask(); !resp.Close {
			t.Error("the answer does not say Connection: close")
		}
		cancel()
		within(t, drained, "the drain's end")
		g.Resume()
		for range 2 {
			if resp := other.ask(); resp.Close {
				t.Error("the answer after the drain says Connection: close")
			}
		}
	})
}

// Where TLS has told the clients already, that is logged.
func TestProgramThatClosesTLSConnectionsIsLogged(t *testing.T) {
	t.Parallel()
	srv := &http.Server{Handler: named("server")}
	g := serveKind(t, "tls", srv, time.Hour)
	lines := &lockedBuffer{}
	g.app.process.Logger = log.New(lines, "", 0)
	for range 2 {
		c := connect(t, g)
		c.ask()
	}
	driver.Eventually(t, "the server to wait for requests", func() bool {
		return !slices.ContainsFunc(g.listener.Entries(), func(e *accept.Entry) bool { return !e.Conn.(*conn).is(waiting) })
	})
	drained, _ := g.begin(t, handOver)
	srv.SetKeepAlivesEnabled(false)
	ends(t, drained)
	handoff.FlushLog(patience)
	if n := strings.Count(lines.String(), "the program closes idle connections"); n != 1 {
		t.Errorf("said %d times that the program has closed connections:\n%s", n, lines)
	}
}

// An address that the new version does not want is closed at once: clients are refused,
// and do not wait for the end of the drain. What is open is finished. If the successor
// fails the address is served again.
func TestAddressThatTheSuccessorDoesNotWantIsClosed(t *testing.T) {
	t.Parallel()
	for _, shut := range []bool{false, true} {
		for _, kind := range []string{"tcp", "unix"} {
			t.Run(fmt.Sprintf("%s shut=%v", kind, shut), func(t *testing.T) {
				t.Parallel()
				g := serveKind(t, kind, &http.Server{Handler: named("server")}, time.Hour)
				busy := connect(t, g)
				busy.ask()
				g.listener.Pause() // as if the process had no time to accept
				waits := dial(t, g)
				ctx, cancel := context.WithCancel(context.Background())
				drained := make(chan error, 1)
				go func() { drained <- g.drain(ctx, handoff.Drain{To: handOver}, true) }()
				driver.AwaitRefused(t, kind, g.addr)
				for _, c := range []*client{busy, waits} {
					if resp := c.ask(); !resp.Close {
						t.Error("the answer does not say Connection: close")
					}
				}
				if shut {
					ends(t, drained)
				}
				cancel()
				if !shut {
					within(t, drained, "the drain's end")
				}
				select {
				case err := <-g.served:
					t.Fatalf("Serve has returned %v", err)
				default:
				}
				asked := make(chan net.Addr)
				go func() { asked <- g.Addr() }() // as GET /status of another server does
				g.Resume()
				if addr := <-asked; addr.String() != g.addr {
					t.Errorf("its address is %v, want %v", addr, g.addr)
				}
				again := connect(t, g)
				again.ask()
			})
		}
	}
}
