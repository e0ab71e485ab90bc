//go:build unix

package gracehttp

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/testserver/driver"
)

// Clients that send request after request over one connection, until an answer says that
// it is the last, or there is none. The latter is a lost request: net/http's Shutdown
// loses some, since it closes connections into which a client is writing.

const busyClients = 16

// keepBusy stops a server under busy clients, and returns how many lost a request.
func keepBusy(tb testing.TB, addr, path string, stop func()) (lost int) {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		busy  sync.WaitGroup // until each client has had some answers
		first error
	)
	busy.Add(busyClients)
	for range busyClients {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			tb.Fatal(err)
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			defer c.Close()
			client := newClient(nil, c)
			for n := 0; ; n++ {
				if n == 3 {
					busy.Done()
				}
				_, err := io.WriteString(c, "POST "+path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody")
				var resp *http.Response
				if err == nil {
					resp, _, err = client.tryAnswer()
				}
				if err != nil {
					mu.Lock()
					lost++
					first = fmt.Errorf("request %d: %w", n, err)
					mu.Unlock()
					return
				}
				if resp.Close {
					return
				}
			}
		}()
	}
	busy.Wait()
	stop()
	wg.Wait()
	if first != nil {
		tb.Logf("%d of %d lost a request; one of them: %v", lost, busyClients, first)
	}
	return lost
}

func takes(d time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(d)
		io.Copy(w, r.Body)
	})
}

func stopOurs(tb testing.TB, handler time.Duration) (lost int) {
	g := newGeneration(tb, "tcp", &http.Server{Handler: takes(handler)}, defaultIdleGrace)
	defer g.cut()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return keepBusy(tb, g.addr, "/", func() {
		if err := g.Drain(ctx, handoff.Drain{}); err != nil {
			tb.Errorf("Drain: %v", err)
		}
	})
}

func stopNetHTTP(tb testing.TB, handler time.Duration) (lost int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	srv := &http.Server{Handler: takes(handler)}
	go srv.Serve(l)
	return keepBusy(tb, l.Addr().String(), "/", func() { srv.Shutdown(context.Background()) })
}

func TestStopLosesNothingOfBusyClients(t *testing.T) {
	for _, handler := range []time.Duration{5 * time.Millisecond, 50 * time.Millisecond} {
		for range driver.Times(4, 4) {
			if lost := stopOurs(t, handler); lost != 0 {
				t.Errorf("with handlers that take %v, %d requests are lost", handler, lost)
			}
		}
	}
	ours, its := 0, 0
	for range 3 {
		ours += stopOurs(t, 0)
		its += stopNetHTTP(t, 0)
	}
	if ours >= its {
		t.Errorf("with fast handlers %d requests are lost, %d by net/http's Shutdown", ours, its)
	}
}

// BenchmarkStops stops this package's server and net/http's in turns, and reports how
// many of all clients have lost a request.
func BenchmarkStops(b *testing.B) {
	for _, handler := range []time.Duration{0, 5 * time.Millisecond, 50 * time.Millisecond} {
		b.Run(fmt.Sprint("handler=", handler), func(b *testing.B) {
			ours, its, stops := 0, 0, 0
			for b.Loop() {
				ours += stopOurs(b, handler)
				its += stopNetHTTP(b, handler)
				stops++
			}
			b.ReportMetric(float64(stops*busyClients), "clients")
			b.ReportMetric(float64(ours), "lost")
			b.ReportMetric(float64(its), "lost-by-net/http")
		})
	}
}

// Where there is no hook that could have told its owner, a hijacked connection is closed
// after the idle grace. What is left of such connections is no error.
func TestHijackedConnectionsAtAStop(t *testing.T) {
	t.Parallel()
	const grace, limit = 300 * time.Millisecond, time.Second
	for _, test := range []struct {
		name  string
		hook  string
		later bool // hijacked during the stop
		quick bool
		h2c   bool // as golang.org/x/net/http2/h2c does
		want  time.Duration
	}{
		{"nobody is told", "", false, false, false, grace},
		{"nobody is told, SIGINT", "", false, true, false, 0},
		{"nobody is told, h2c", "", false, false, true, grace},
		{"hijacked during the stop", "", true, false, false, grace},
		{"OnDrain", "OnDrain", false, false, false, limit},
		{"RegisterOnShutdown", "RegisterOnShutdown", false, false, false, limit},
	} {
		for _, kind := range []string{"tcp", "tls"} {
			t.Run(test.name+" "+kind, func(t *testing.T) {
				t.Parallel()
				begun, release := make(chan bool, 1), make(chan bool, 1)
				srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					begun <- true
					<-release
					echo(w, r)
				})}
				if test.hook == "RegisterOnShutdown" {
					srv.RegisterOnShutdown(func() {})
				}
				g := serveKind(t, kind, srv, grace)
				if test.hook == "OnDrain" {
					OnDrain(func() {})(g.app)
				}
				c := connect(t, g)
				if test.h2c {
					c.send(http2Preface + "\r\n")
				} else {
					c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
				}
				within(t, begun, "the request")
				if !test.later {
					release <- true
					if resp, err := http.ReadResponse(c.answers, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
						t.Fatalf("answer: %v, %v", resp, err)
					}
				}
				start := time.Now()
				ctx, cancel := context.WithTimeout(context.Background(), limit)
				defer cancel()
				drained := make(chan error, 1)
				go func() { drained <- g.Drain(ctx, handoff.Drain{Quick: test.quick}) }()
				if test.later {
					driver.Eventually(t, "the drain to begin", func() bool { return g.draining.Load() != nil })
					release <- true
				}
				ends(t, drained)
				if took := time.Since(start); took < test.want || took > test.want+limit/2 {
					t.Errorf("the drain took %v, want %v", took, test.want)
				}
				if n := g.Count().Told; n != 0 {
					t.Errorf("%d were told, want none: a handler answers what it has hijacked", n)
				}
			})
		}
	}
}

// So is one of a protocol of the program's own, which net/http says nothing of, if its
// handshake ends during the stop.
func TestOwnProtocolThatBeginsAtAStopIsClosed(t *testing.T) {
	t.Parallel()
	srv := &http.Server{TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){
		"lines": func(_ *http.Server, c *tls.Conn, _ http.Handler) {
			io.Copy(c, c)
			c.Close()
		},
	}}
	srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate().cert}, NextProtos: []string{"lines"}}
	g := serveGeneration(t, "tcp", srv, 500*time.Millisecond)
	raw := dial(t, g)
	within(t, g.accepted, "the connection to be accepted")
	drained, _ := g.begin(t, stop)
	c := newClient(t, tls.Client(raw.Conn, clientTLS("lines")))
	c.send("a\n")
	if line, err := c.answers.ReadString('\n'); line != "a\n" {
		t.Fatalf("the connection brings %q, %v", line, err)
	}
	if err := within(t, drained, "the drain's end"); err != nil {
		t.Errorf("Drain: %v", err)
	}
}

func TestHijackedConnectionsAreAnErrorAfterAHandoff(t *testing.T) {
	t.Parallel()
	g := serveKind(t, "tcp", &http.Server{Handler: http.HandlerFunc(echo)}, 0)
	c := connect(t, g)
	c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	http.ReadResponse(c.answers, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := g.Drain(ctx, handoff.Drain{To: handOver}); err != context.DeadlineExceeded {
		t.Errorf("Drain: %v, want that its time is over", err)
	}
	if n := g.Count(); n.Hijacked != 1 || n.Cut != 1 {
		t.Errorf("counted %+v, want a hijacked one that is cut", n)
	}
}

// Before a stop that load balancers are to notice first, all is served, new connections
// too. Clients are told one after the other, and nothing is closed.
func TestLameDuckServes(t *testing.T) {
	t.Parallel()
	driver.NotShort(t)
	const length = 2 * time.Second
	driver.Each(t, []string{"tcp", "tls"}, func(t *testing.T, kind string) {
		g := serveKind(t, kind, &http.Server{Handler: takes(5 * time.Millisecond)}, 3*time.Second)
		g.app.drainRate = 1
		var clients []*client
		for range 4 {
			c := connect(t, g)
			c.send(get)
			c.expect("")
			clients = append(clients, c)
		}
		idle, clients := clients[0], clients[1:]
		start := time.Now()
		g.LameDuck(length)
		told := make(chan time.Duration, len(clients))
		for _, c := range clients {
			go func() {
				for {
					if _, err := io.WriteString(c, get); err != nil {
						t.Error(err)
					}
					if resp, _, err := c.tryAnswer(); err != nil || resp.Close {
						if err != nil {
							t.Error(err)
						}
						told <- time.Since(start)
						return
					}
				}
			}()
		}
		var at []time.Duration
		for range clients {
			at = append(at, within(t, told, "the client to be told"))
		}
		if at[2]-at[0] < length/8 || at[2] > length*3/4 {
			t.Errorf("clients are told at %v, want them one after the other within half of %v", at, length)
		}
		fresh := connect(t, g)
		fresh.send(get)
		fresh.expect("")
		// In the last moment before the stop, and nobody has read its request.
		last := dial(t, g)
		if kind == "tls" {
			last = newClient(t, tls.Client(last.Conn, clientTLS("http/1.1")))
		}
		drained, _ := g.begin(t, stop)
		for _, c := range []*client{idle, last} {
			c.send(get)
			if resp := c.expect(""); !resp.Close {
				t.Error("an answer at the stop does not say Connection: close")
			}
		}
		ends(t, drained)
		if n := g.Count(); n.Told < 5 || n.Cut != 0 || n.Open != 0 {
			t.Errorf("counted %+v, want five or more that were told", n)
		}
	})
}

// After a lame duck idle connections have the idle grace, not only a second.
func TestGraceAfterALameDuck(t *testing.T) {
	t.Parallel()
	const grace = stopGrace * 3 / 2
	g := serveKind(t, "tcp", &http.Server{}, grace)
	c := connect(t, g)
	g.LameDuck(time.Millisecond)
	start := time.Now()
	g.begin(t, stop)
	c.expectEnd()
	if lasted := time.Since(start); lasted < grace {
		t.Errorf("an idle connection has ended after %v, want %v", lasted, grace)
	}
}
