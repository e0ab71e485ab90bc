//go:build unix

package gracehttp

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
	"github.com/facebookgo/grace/internal/testserver/driver"
)

// A program that was written for facebookgo/grace compiles.
var (
	_ func(servers ...*http.Server) error                   = Serve
	_ func(servers []*http.Server, options ...Option) error = ServeWithOptions
	_ func(hook func() error) Option                        = PreStartProcess
	_ func(logger *log.Logger)                              = SetLogger
)

func TestAddr(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		srv           *http.Server
		network, addr string
	}{
		{&http.Server{}, "tcp", ":http"},
		{&http.Server{TLSConfig: &tls.Config{}}, "tcp", ":https"},
		{&http.Server{Addr: ":8080"}, "tcp", ":8080"},
		{&http.Server{Addr: "[::1]:http", TLSConfig: &tls.Config{}}, "tcp", "[::1]:http"},
		{&http.Server{Addr: "unix:/run/server"}, "unix", "/run/server"},
		{&http.Server{Addr: "unix:relative"}, "unix", "relative"},
		{&http.Server{Addr: "unix:@abstract"}, "unix", "@abstract"},
		{&http.Server{Addr: "systemd:web"}, "tcp", "systemd:web"},
	} {
		if network, addr := address(test.srv); network != test.network || addr != test.addr {
			t.Errorf("Addr %q, TLS %v: %s %s, want %s %s", test.srv.Addr, test.srv.TLSConfig != nil, network, addr, test.network, test.addr)
		}
	}
}

func TestLogFlagDefaultsToTrue(t *testing.T) {
	t.Parallel()
	f := flag.Lookup("gracehttp.log")
	if f == nil || f.DefValue != "true" {
		t.Errorf("the flag -gracehttp.log is %+v", f)
	}
}

var freeAddrs atomic.Uint32

// freeAddr returns an address on which nobody listens: on Linux, where all of
// 127.0.0.0/8 is the loopback device's, one that no other test comes upon.
func freeAddr(t *testing.T) string {
	t.Helper()
	host := "127.0.0.1"
	if runtime.GOOS == "linux" {
		host = fmt.Sprintf("127.0.1.%d", freeAddrs.Add(1)%250+1)
	}
	l, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	driver.AwaitRefused(t, "tcp", l.Addr().String())
	return l.Addr().String()
}

func TestFailedStartLeavesNothingListening(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	path := t.TempDir() + "/socket"
	for _, test := range []struct {
		name string
		last *http.Server
		want func(error) bool
	}{
		{"address in use", &http.Server{Addr: taken.Addr().String()}, func(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }},
		{"no such address", &http.Server{Addr: "127.0.0.1:no-such-port"}, func(err error) bool { var e *net.DNSError; return errors.As(err, &e) }},
		{"no directory", &http.Server{Addr: "unix:/no/such/directory/socket"}, func(err error) bool { return errors.Is(err, syscall.ENOENT) }},
		{"no path", &http.Server{Addr: "unix:"}, func(err error) bool { return strings.Contains(err.Error(), "no path") }},
		{"no such socket", &http.Server{Addr: "systemd:web"}, func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
		{"no certificate", &http.Server{Addr: "127.0.0.1:0", TLSConfig: &tls.Config{}}, func(err error) bool { return strings.Contains(err.Error(), "no certificate") }},
	} {
		first := freeAddr(t)
		handler := named("server")
		srv := &http.Server{Addr: first, Handler: handler}
		err := Serve(srv, &http.Server{Addr: "unix:" + path}, test.last)
		if err == nil || !test.want(err) || !strings.Contains(err.Error(), strings.TrimPrefix(test.last.Addr, "unix:")) {
			t.Errorf("%s: Serve: %v", test.name, err)
		}
		driver.AwaitRefused(t, "tcp", first)
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the unix socket's file is still there", test.name)
		}
	}
}

func TestServeWithoutServersFails(t *testing.T) {
	t.Parallel()
	if err := Serve(); err == nil {
		t.Error("Serve has nothing to serve, and says nothing")
	}
}

func TestRestartNeedsServe(t *testing.T) {
	if _, err := Restart(); err != ErrNotServing {
		t.Errorf("Restart: %v, want ErrNotServing", err)
	}
}

// The tests from here on serve in the test's own process, one at a time: they
// stop it by signal.

func TestNilLoggerIsSilence(t *testing.T) {
	defer log.SetOutput(os.Stderr)
	defer logger.Store(nil)
	for _, silent := range []bool{false, true} {
		if silent {
			SetLogger(nil)
		}
		said := &lockedBuffer{}
		log.SetOutput(said)
		ctx, stop := context.WithCancel(context.Background())
		if err := ServeContext(ctx, []*http.Server{{Addr: "127.0.0.1:0"}}, OnReady(stop)); err != nil {
			t.Fatal(err)
		}
		handoff.FlushLog(10 * time.Second)
		if s := said.String(); (s == "") != silent {
			t.Errorf("the standard logger got %q; SetLogger(nil) was called: %v", s, silent)
		}
	}
}

// A service is one call of Serve.
type service struct {
	t      *testing.T
	addrs  []string
	result chan error
	log    *lockedBuffer
}

// start calls ServeWithOptions, and returns when all servers serve.
func start(t *testing.T, servers []*http.Server, options ...Option) *service {
	t.Helper()
	s := &service{t: t, result: make(chan error, 1), log: &lockedBuffer{}}
	SetLogger(log.New(s.log, "", 0))
	listeners := make(chan net.Addr, len(servers))
	for _, srv := range servers {
		if srv.Addr == "" {
			srv.Addr = "127.0.0.1:0"
		}
		hook := srv.BaseContext
		srv.BaseContext = func(l net.Listener) context.Context {
			listeners <- l.Addr()
			if hook != nil {
				return hook(l)
			}
			return context.Background()
		}
	}
	go func() { s.result <- ServeWithOptions(servers, options...) }()
	byPort := make(map[string]bool)
	for range servers {
		select {
		case addr := <-listeners:
			byPort[addr.String()] = true
		case err := <-s.result:
			t.Fatalf("Serve: %v", err)
		}
	}
	driver.Eventually(t, "Serve to serve", Ready) // a signal that comes earlier ends the process
	for _, l := range current.Load().servers {
		s.addrs = append(s.addrs, l.Addr().String())
	}
	for _, addr := range s.addrs {
		if !byPort[addr] {
			t.Fatalf("no server listens on %s, but on %v", addr, byPort)
		}
	}
	t.Cleanup(func() {
		logger.Store(nil)
		if current.Load() != nil {
			s.signal(syscall.SIGTERM)
			<-s.result
		}
		if t.Failed() {
			t.Logf("logged:\n%s", s.log)
		}
	})
	return s
}

func (s *service) signal(sig syscall.Signal) {
	if err := syscall.Kill(os.Getpid(), sig); err != nil {
		s.t.Fatal(err)
	}
}

func (s *service) connect(i int) *client {
	s.t.Helper()
	network := "tcp"
	if strings.HasPrefix(s.addrs[i], "/") {
		network = "unix"
	}
	c, err := net.Dial(network, s.addrs[i])
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return newClient(s.t, c)
}

func TestServeReturnsNilAfterASignal(t *testing.T) {
	for _, sig := range driver.Some([]syscall.Signal{syscall.SIGINT, syscall.SIGTERM}, 1) {
		path := t.TempDir() + "/socket"
		s := start(t, []*http.Server{{Handler: named("first")}, {Addr: "unix:" + path, Handler: named("second")}})
		var clients []*client
		for i, name := range []string{"first", "second"} {
			c := s.connect(i)
			c.send(get)
			c.expect(name + " / 0")
			clients = append(clients, c)
		}
		signaled := time.Now()
		s.signal(sig)
		if err := within(t, s.result, "the end of Serve"); err != nil {
			t.Errorf("Serve after %v: %v", sig, err)
		}
		// Clients of idle connections have a second for what they are sending; a terminal
		// does not wait for that.
		if took := time.Since(signaled); (took < stopGrace) != (sig == syscall.SIGINT) {
			t.Errorf("the stop by %v took %v", sig, took)
		}
		for _, c := range clients {
			c.expectEnd()
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the unix socket's file is still there: %v", err)
		}
		driver.AwaitRefused(t, "tcp", s.addrs[0])
		for _, want := range []string{
			fmt.Sprintf("Serving %s, %s with pid %d.", s.addrs[0], s.addrs[1], os.Getpid()),
			fmt.Sprintf("%v: stopping pid %d", sig, os.Getpid()),
		} {
			if !strings.Contains(s.log.String(), want) {
				t.Errorf("the log has no %q:\n%s", want, s.log)
			}
		}
	}
}

func TestLogFlagSilencesTheLog(t *testing.T) {
	if err := flag.Set("gracehttp.log", "false"); err != nil {
		t.Fatal(err)
	}
	defer flag.Set("gracehttp.log", "true")
	s := start(t, []*http.Server{{}})
	s.signal(syscall.SIGTERM)
	if err := within(t, s.result, "the end of Serve"); err != nil {
		t.Errorf("Serve: %v", err)
	}
	if s.log.String() != "" {
		t.Errorf("logged:\n%s", s.log)
	}
}

// When one server fails, what the others have begun is finished first.
func TestFailingServerDrainsTheOthers(t *testing.T) {
	for name, end := range map[string]func(*http.Server) error{
		"Close":    (*http.Server).Close,
		"Shutdown": func(srv *http.Server) error { return srv.Shutdown(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			begun, release := make(chan bool), make(chan bool)
			failing := &http.Server{}
			s := start(t, []*http.Server{failing, {Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				begun <- true
				<-release
				io.WriteString(w, "done")
			})}})
			c := s.connect(1)
			c.send(get)
			within(t, begun, "the request")
			if err := end(failing); err != nil {
				t.Fatal(err)
			}
			for refused := false; !refused; {
				c, err := net.Dial("tcp", s.addrs[1])
				if refused = err != nil; !refused {
					c.Close()
				}
			}
			select {
			case err := <-s.result:
				t.Fatalf("Serve has returned %v while a request is being handled", err)
			default:
			}
			close(release)
			c.expect("done")
			if err := within(t, s.result, "the end of Serve"); !errors.Is(err, http.ErrServerClosed) {
				t.Errorf("Serve: %v, want http.ErrServerClosed", err)
			}
		})
	}
}

func TestDrainTimeoutCutsWhatIsLeft(t *testing.T) {
	begun := make(chan bool)
	stuck := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- true
		<-r.Context().Done()
	})}
	s := start(t, []*http.Server{stuck}, DrainTimeout(50*time.Millisecond))
	c := s.connect(0)
	c.send(get)
	within(t, begun, "the request")
	s.signal(syscall.SIGTERM)
	err := within(t, s.result, "the end of Serve")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 connection") {
		t.Errorf("Serve: %v, want that its time is over, and what was left", err)
	}
	if _, _, err := c.tryAnswer(); err == nil {
		t.Error("the connection is open after the drain timeout")
	}
}

func TestOptionsReachTheProcess(t *testing.T) {
	failed := errors.New("not now")
	s := start(t, []*http.Server{{}}, PreStartProcess(func() error { return failed }), StartTimeout(time.Second), DrainTimeout(2*time.Second), IdleGrace(3*time.Second))
	a := current.Load()
	if err := Serve(&http.Server{Addr: "127.0.0.1:0"}); err == nil {
		t.Error("two Serve run at a time")
	}
	if a.process.StartTimeout != time.Second || a.process.TermTimeout != 2*time.Second || a.idleGrace != 3*time.Second {
		t.Errorf("start timeout %v, drain timeout %v, idle grace %v", a.process.StartTimeout, a.process.TermTimeout, a.idleGrace)
	}
	if _, err := Restart(); !errors.Is(err, failed) {
		t.Errorf("Restart: %v, want the hook's error", err)
	}
	s.signal(syscall.SIGUSR2)
	c := s.connect(0)
	for !strings.Contains(s.log.String(), "restart failed") {
		c.send(get)
		c.answer() // it serves on
	}
	if !strings.Contains(s.log.String(), "not now") {
		t.Errorf("the log does not say why the restart failed:\n%s", s.log)
	}
}

func TestDefaultTimeouts(t *testing.T) {
	s := start(t, []*http.Server{{}})
	a := current.Load()
	if a.process.TermTimeout != time.Minute || a.idleGrace != 5*time.Second {
		t.Errorf("drain timeout %v, idle grace %v", a.process.TermTimeout, a.idleGrace)
	}
	s.signal(syscall.SIGTERM)
	if err := within(t, s.result, "the end of Serve"); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// What is not positive means what the options say.
func TestOptionsWithoutAPositiveValue(t *testing.T) {
	for _, d := range []time.Duration{0, -time.Second} {
		a := &app{idleGrace: defaultIdleGrace, drainRate: defaultDrainRate}
		for _, option := range []Option{StartTimeout(d), DrainTimeout(d), IdleGrace(d), DrainRate(int(d)), Standby(d), LameDuck(d)} {
			option(a)
		}
		p := &a.process
		if p.StartTimeout != 0 || p.TermTimeout != 0 || p.Standby != 0 || p.LameDuck != 0 || a.idleGrace != 0 || a.drainRate != 0 {
			t.Errorf("%v: start %v, drain %v, standby %v, lame duck %v, idle %v, rate %d; want 0", d, p.StartTimeout, p.TermTimeout, p.Standby, p.LameDuck, a.idleGrace, a.drainRate)
		}
	}
}

// golang.org/x/net/http2.ConfigureServer makes a TLSConfig of a server that shall speak
// HTTP/2 without TLS.
func TestTLSConfigWithoutCertificatesForH2C(t *testing.T) {
	srv := &http.Server{Handler: named("server"), TLSConfig: &tls.Config{NextProtos: []string{"h2", "http/1.1"}}}
	if _, addr := address(srv); addr != ":http" {
		t.Errorf("it listens on %s", addr)
	}
	s := start(t, []*http.Server{srv})
	c := s.connect(0)
	c.ask()
	c.Close()
	s.signal(syscall.SIGTERM)
	if err := within(t, s.result, "the end of Serve"); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// What the program has set in its http.Server is called as by net/http.
func TestHooksOfTheProgramAreCalled(t *testing.T) {
	errorLog := &lockedBuffer{}
	states := make(chan http.ConnState, 100)
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/panic" {
				panic("played")
			}
			fmt.Fprint(w, r.Context().Value(contextKey{}))
		}),
		ConnState: func(_ net.Conn, state http.ConnState) { states <- state },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, contextKey{}, fmt.Sprint(ctx.Value(contextKey{}), " connection"))
		},
		BaseContext: func(l net.Listener) context.Context {
			return context.WithValue(context.Background(), contextKey{}, "base")
		},
		ErrorLog: log.New(errorLog, "", 0),
	}
	shutdown := make(chan bool, 1)
	srv.RegisterOnShutdown(func() { shutdown <- true })
	s := start(t, []*http.Server{srv})
	c := s.connect(0)
	c.send(get)
	c.expect("base connection")
	c.send("GET /panic HTTP/1.1\r\nHost: x\r\n\r\n")
	c.expectEnd()
	if !strings.Contains(errorLog.String(), "played") {
		t.Errorf("ErrorLog has got %q", errorLog)
	}
	for _, want := range []http.ConnState{http.StateNew, http.StateActive, http.StateIdle, http.StateActive, http.StateClosed} {
		if got := within(t, states, want.String()); got != want {
			t.Errorf("ConnState: %v, want %v", got, want)
		}
	}
	s.signal(syscall.SIGTERM)
	within(t, shutdown, "the hook of RegisterOnShutdown")
	if err := within(t, s.result, "the end of Serve"); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

var registerDefault = sync.OnceFunc(func() { http.Handle("/gracehttp-test", named("default")) })

// A server without a handler has http.DefaultServeMux, and the answer to
// OPTIONS * that net/http gives.
func TestServerWithoutHandler(t *testing.T) {
	registerDefault()
	s := start(t, []*http.Server{{}})
	c := s.connect(0)
	c.send("GET /gracehttp-test HTTP/1.1\r\nHost: x\r\n\r\n")
	c.expect("default /gracehttp-test 0")
	c.send("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n")
	if resp := c.expect(""); resp.Header.Get("Allow") != "" || resp.ContentLength != 0 {
		t.Errorf("OPTIONS *: %v", resp.Header)
	}
	c.Close()
	s.signal(syscall.SIGTERM)
	if err := within(t, s.result, "the end of Serve"); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// TLS is served as ServeTLS does: HTTP/2 if the client wants it.
func TestTLSOffersHTTP2(t *testing.T) {
	srv := &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate().cert}},
	}
	s := start(t, []*http.Server{srv})
	for proto, offer := range map[string][]string{"HTTP/2.0": {"h2", "http/1.1"}, "HTTP/1.1": {"http/1.1"}} {
		tr := &http.Transport{TLSClientConfig: clientTLS(offer...), ForceAttemptHTTP2: proto == "HTTP/2.0"}
		tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.addrs[0])
		}
		resp, err := (&http.Client{Transport: tr, Timeout: patience}).Get("https://example.com/")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != proto {
			t.Errorf("a client that offers %q speaks %q, %v", offer, body, err)
		}
		tr.CloseIdleConnections()
	}
	s.signal(syscall.SIGTERM)
	if err := within(t, s.result, "the end of Serve"); err != nil {
		t.Errorf("Serve: %v", err)
	}
}
