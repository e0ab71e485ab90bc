//go:build unix

package gracehttp

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/testserver/driver"
)

// A connection may move only when all that was read from it has been used. That
// is concluded from what net/http asks for; these tests hold the conclusion
// against the Go release that runs them.

func TestNetHTTPReadPattern(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, test := range []struct {
		name     string
		timeouts time.Duration
		h2c      bool
		send     string   // after the first request, in the same write
		want     []string // what is done on the connection between StateIdle and the wait for more
	}{
		{"nothing is left", 0, false, "", []string{"deadline", "read 4096"}},
		{"nothing is left, timeouts", time.Hour, false, "", []string{"deadline", "read 4096"}},
		{"nothing is left, h2c", 0, true, "", []string{"deadline", "read 4096"}},
		{"one byte is left", 0, false, "G", []string{"deadline", "read 4095"}},
		{"three bytes are left", 0, false, "GET", []string{"deadline", "read 4093"}},
		{"four bytes are left", 0, false, "GET ", []string{"deadline", "deadline", "read 4092"}},
		{"a line is left", 0, false, "GET / HTTP/1.1\r\n", []string{"deadline", "deadline", "read 4096"}},
		{"a line is left, timeouts", time.Hour, false, "GET / HTTP/1.1\r\n", []string{"deadline", "deadline", "read 4096"}},
		{"a line is left, h2c", 0, true, "GET / HTTP/1.1\r\n", []string{"deadline", "deadline", "read 4096"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			record := &recorder{events: make(chan string, 100)}
			srv := &http.Server{
				Handler:     named("server"),
				ReadTimeout: test.timeouts, ReadHeaderTimeout: test.timeouts, IdleTimeout: test.timeouts,
				ConnState: func(_ net.Conn, state http.ConnState) { record.events <- state.String() },
			}
			if test.h2c {
				enableH2C(srv)
			}
			go srv.Serve(recordingListener{l, record})
			t.Cleanup(func() { srv.Close() })
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			client := newClient(t, c)
			client.send(request + test.send)
			client.expect("server / 0")

			for within(t, record.events, "StateIdle") != "idle" {
			}
			var got []string
			for {
				e := within(t, record.events, fmt.Sprintf("a Read after %q", got))
				if strings.HasPrefix(e, "deadline") && len(got) > 0 && got[len(got)-1] == "deadline" && len(got) == 2 {
					continue // how often it is set once a request has begun is all the same
				}
				got = append(got, e)
				if strings.HasPrefix(e, "read") {
					break
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("between the requests net/http did %q, want %q", got, test.want)
			}
		})
	}
}

type recorder struct{ events chan string }

type recordingListener struct {
	net.Listener
	*recorder
}

func (l recordingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return recordingConn{c, l.recorder}, err
}

type recordingConn struct {
	net.Conn
	*recorder
}

func (c recordingConn) Read(b []byte) (int, error) {
	c.events <- fmt.Sprint("read ", len(b))
	return c.Conn.Read(b)
}

func (c recordingConn) SetReadDeadline(t time.Time) error {
	c.events <- "deadline"
	return c.Conn.SetReadDeadline(t)
}

func enableH2C(srv *http.Server) {
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
}

// TestMovesOnlyBetweenRequests tempts each Read to move the connection, while
// requests of all kinds come in pieces of all sizes.
func TestMovesOnlyBetweenRequests(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			movesOnlyBetweenRequests(t, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

func movesOnlyBetweenRequests(t *testing.T, random *rand.Rand) {
	var (
		mu       sync.Mutex
		brought  int                    // bytes read from the connection
		offers   = make(chan int, 1000) // how many when it was offered
		atRest   = make(chan int, 1)
		accepted = make(chan bool, 1)
	)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/unread") {
			fmt.Fprint(w, "unread")
			return
		}
		named("server").ServeHTTP(w, r)
	})}
	if random.IntN(2) == 0 {
		enableH2C(srv)
	}
	if random.IntN(2) == 0 {
		srv.ReadTimeout, srv.IdleTimeout = time.Hour, time.Hour
	}
	srv.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		core := coreOf(c)
		core.raw = &temptingConn{rawConn: core.raw, core: core, read: func(n int) {
			mu.Lock()
			brought += n
			mu.Unlock()
		}, rest: func() {
			mu.Lock()
			defer mu.Unlock()
			select {
			case <-atRest:
			default:
			}
			atRest <- brought
		}}
		accepted <- true
		return ctx
	}
	g := serveGeneration(t, "tcp", srv, time.Hour)

	// The stream, and where its requests end.
	var stream strings.Builder
	ends := []int{0}
	var answers []string
	for i := range 12 {
		size := []int{0, 0, 1, 5, 4000, 4096, 9000, 70000}[random.IntN(8)]
		path := fmt.Sprint("/", i)
		answer := fmt.Sprintf("server %s %d", path, size)
		if random.IntN(4) == 0 {
			path, answer = "/unread"+path, "unread"
		}
		padding := strings.Repeat("x", []int{0, 1, 100, 4090, 5000}[random.IntN(5)])
		switch {
		case size == 0 && random.IntN(2) == 0:
			fmt.Fprintf(&stream, "GET %s HTTP/1.1\r\nHost: x\r\nPadding: %s\r\n\r\n", path, padding)
		case random.IntN(3) == 0:
			fmt.Fprintf(&stream, "POST %s HTTP/1.1\r\nHost: x\r\nPadding: %s\r\nTransfer-Encoding: chunked\r\n\r\n", path, padding)
			if size > 0 {
				fmt.Fprintf(&stream, "%x\r\n%s\r\n", size, strings.Repeat("b", size))
			}
			stream.WriteString("0\r\n\r\n")
		default:
			fmt.Fprintf(&stream, "POST %s HTTP/1.1\r\nHost: x\r\nPadding: %s\r\nContent-Length: %d\r\n\r\n%s", path, padding, size, strings.Repeat("b", size))
		}
		ends = append(ends, stream.Len())
		answers = append(answers, answer)
	}

	c := dial(t, g)
	within(t, accepted, "the connection")
	g.drainWith(t, func(*conn) bool {
		mu.Lock()
		defer mu.Unlock()
		offers <- brought
		return false
	})
	offered := []int{within(t, offers, "the connection to be offered before the first request")}

	// A piece at a time: the next one only when the server has read all and
	// waits for more.
	answered := make(chan error, 1)
	go func() {
		for i, want := range answers {
			resp, body, err := c.tryAnswer()
			if err == nil && (resp.StatusCode != http.StatusOK || body != want) {
				err = fmt.Errorf("answer %s, %q; want %q", resp.Status, body, want)
			}
			if err != nil {
				answered <- fmt.Errorf("request %d: %w", i, err)
				return
			}
		}
		answered <- nil
	}()
	rest := stream.String()
	for sent := 0; rest != ""; {
		// To the next end, the next line's end, or anywhere.
		n := 1 + random.IntN(len(rest))
		switch random.IntN(4) {
		case 0:
			n = ends[slices.IndexFunc(ends, func(end int) bool { return end > sent })] - sent
		case 1:
			if i := strings.Index(rest, "\n"); i >= 0 {
				n = i + 1
			}
		case 2:
			n = 1 + random.IntN(min(len(rest), 300))
		}
		c.send(rest[:n])
		rest, sent = rest[n:], sent+n
		for within(t, atRest, fmt.Sprintf("the server to read all of %d bytes", sent)) < sent {
		}
	}
	if err := within(t, answered, "all answers"); err != nil {
		t.Fatal(err)
	}

	for offered[len(offered)-1] < stream.Len() {
		offered = append(offered, within(t, offers, "the connection to be offered after the last request"))
	}
	for _, offer := range offered {
		if !slices.Contains(ends, offer) {
			t.Errorf("offered after %d bytes: in the midst of a request; they end at %d", offer, ends)
		}
	}
}

// A temptingConn kicks the connection at each Read.
type temptingConn struct {
	rawConn
	core        *conn
	read        func(int)
	rest        func() // it is about to wait
	tempted     bool
	interrupted atomic.Bool // the kick has set a deadline in the past
}

func (c *temptingConn) Read(b []byte) (int, error) {
	c.interrupted.Store(false)
	if !c.tempted {
		c.tempted = true
		c.core.wake()
	}
	if !c.interrupted.Load() {
		c.rest()
	}
	n, err := c.rawConn.Read(b)
	c.read(n)
	if n > 0 {
		c.tempted = false
	}
	return n, err
}

func (c *temptingConn) SetReadDeadline(t time.Time) error {
	if t == longAgo {
		c.interrupted.Store(true)
	}
	return c.rawConn.SetReadDeadline(t)
}

// A kick sets a deadline in the past, and may come while a request begins: then
// nothing of it must be left.
func TestKicksAtAnyTimeAreNotNoticed(t *testing.T) {
	for _, timeout := range []time.Duration{0, time.Hour} {
		for _, encrypted := range []bool{false, true} {
			t.Run(fmt.Sprintf("timeouts=%v TLS=%v", timeout, encrypted), func(t *testing.T) {
				t.Parallel()
				kicksAtAnyTime(t, timeout, encrypted)
			})
		}
	}
}

func kicksAtAnyTime(t *testing.T, timeout time.Duration, encrypted bool) {
	srv := &http.Server{Handler: named("server"), ReadTimeout: timeout, ReadHeaderTimeout: timeout, IdleTimeout: timeout}
	var config *tls.Config
	if encrypted {
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate().cert}}
		config = clientTLS("http/1.1")
	}
	g := serveGeneration(t, "tcp", srv, time.Hour)
	var d *drain
	if encrypted {
		d = &drain{server: g.server, grace: time.Hour}
		d.newPace(false)
		d.pace.Load().told.from = time.Now().Add(time.Hour) // nobody is told to leave
		g.draining.Store(d)
	} else {
		d = g.drainWith(t, func(*conn) bool { return false })
		g.listener.Resume()
	}

	const clients, requests = 4, 20
	conns := driver.Times(15, 8)
	one := func(random *rand.Rand) error {
		nc, err := net.Dial("tcp", g.addr)
		if err != nil {
			return err
		}
		defer nc.Close()
		if encrypted {
			nc = tls.Client(nc, config)
		}
		c := newClient(t, nc)
		for n := range requests {
			body := random.IntN(5000)
			request := fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", n, body, strings.Repeat("b", body))
			cut := random.IntN(len(request))
			for _, part := range []string{request[:cut], request[cut:]} {
				if _, err := io.WriteString(c, part); err != nil {
					return fmt.Errorf("request %d: %w", n, err)
				}
			}
			resp, got, err := c.tryAnswer()
			if want := fmt.Sprintf("server /%d %d", n, body); err != nil || resp.Close || got != want {
				return fmt.Errorf("request %d: %v, %+v, %q", n, err, resp, got)
			}
		}
		return nil
	}
	var wg sync.WaitGroup
	for i := range clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			random := rand.New(rand.NewPCG(uint64(i), 0))
			for range conns {
				if err := one(random); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	for kicks := 1; ; kicks++ {
		d.wakeAll()
		select {
		case <-done:
			t.Logf("kicked %d times", kicks)
			return
		default:
			runtime.Gosched()
		}
	}
}
