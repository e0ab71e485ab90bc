// Package gracehttp serves HTTP and restarts without anyone noticing.
//
//	func main() {
//		err := gracehttp.Serve(&http.Server{Addr: ":8080", Handler: handler})
//		if err != nil {
//			log.Fatal(err)
//		}
//	}
//
// SIGUSR2 restarts: the program is started anew, inherits the sockets, and takes
// the open connections over, each between two requests, so that no client even
// has to reconnect. The old process serves until the new one has opened or
// inherited all its sockets and its Serve accepts: do what takes long before
// calling Serve. SIGTERM and SIGINT stop: requests are finished, then Serve
// returns; one that comes a second later or more ends the process at once. See package
// grace for what else happens on the way.
//
// Connections that cannot move (TLS, HTTP/2, hijacked ones) are finished here:
// an answer tells the client not to send another request on that connection, and
// one that stays idle for the grace time is closed. TLS clients resume their
// sessions with the new process.
package gracehttp

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/facebookgo/grace"
	"github.com/facebookgo/grace/gracenet"
	"github.com/facebookgo/grace/internal/handoff"
)

// ErrNotServing is returned by Restart when Serve is not running.
var ErrNotServing = errors.New("gracehttp: not serving")

const (
	defaultDrainTimeout = time.Minute
	defaultIdleGrace    = 5 * time.Second

	// defaultDrainRate is what one core bears beside its work, with RSA certificates.
	defaultDrainRate = 200
)

var (
	verbose = flag.Bool("gracehttp.log", true, "Log serving, restarts and drains.")
	logger  atomic.Pointer[log.Logger] // nil until SetLogger is called
	silence = log.New(io.Discard, "", 0)
	serving atomic.Bool
	current atomic.Pointer[app]
)

// SetLogger chooses where Serve logs to: nowhere, if l is nil. Without a call that is the
// standard logger. The flag -gracehttp.log=false turns logging off.
func SetLogger(l *log.Logger) {
	if l == nil {
		l = silence
	}
	logger.Store(l)
}

// An Option changes what ServeWithOptions does.
type Option func(*app)

// PreStartProcess calls hook before a successor is started. An error calls the
// restart off.
func PreStartProcess(hook func() error) Option {
	return func(a *app) { a.process.PreStart = hook }
}

// StartTimeout is how long a successor may take until it is ready; one minute
// by default, and if d is not positive. One that takes longer is killed, and this process
// serves on.
func StartTimeout(d time.Duration) Option {
	return func(a *app) { a.process.StartTimeout = max(0, d) }
}

// DrainTimeout bounds how long open connections are waited for, after a handoff
// and after a signal to stop: one minute by default, as long as it takes if d is not
// positive. What is left then is closed, and Serve returns an error that is
// context.DeadlineExceeded, unless it was a stop and only hijacked connections were left.
func DrainTimeout(d time.Duration) Option {
	return func(a *app) { a.process.TermTimeout = max(0, d) }
}

// IdleGrace is how long an idle connection that cannot move stays open for its client's
// next request after a handoff; five seconds by default, not at all if d is not positive.
// A client that sends one is told to open a new connection. DrainRate spreads both. The
// last quarter of DrainTimeout is for requests that are under way: nothing idle stays open
// then.
//
// At a stop it is one second at most, or d after a lame duck, and none after SIGINT; and
// hijacked connections are closed after d if there is no hook, of OnDrain or
// RegisterOnShutdown, that could have ended them.
func IdleGrace(d time.Duration) Option {
	return func(a *app) { a.idleGrace = max(0, d) }
}

// DrainRate bounds the burst of handshakes after a handoff: over TCP, of the clients whose
// connections cannot move, at most so many in a second are told to open a new one, and at
// most so many idle connections are closed; 200 by default, so that 5,000 take 25 seconds.
// If perSecond is not positive there is no bound.
//
// Only DrainTimeout makes it faster: all must be told within half of it. With one minute,
// 10,000 connections leave at a rate of 333 a second, and 100,000 at 3,333. At a stop
// clients are told at once, and idle connections are closed one after the other within a
// second. HTTP/2 connections that are idle all the time are told last, all at once.
func DrainRate(perSecond int) Option {
	return func(a *app) { a.drainRate = max(0, perSecond) }
}

// OnDrain calls hook, in a goroutine of its own, when a drain begins: it is time
// to end what would not end by itself, such as WebSockets and other hijacked
// connections, and long answers such as server-sent events. Serve returns when hook has,
// or at the end of DrainTimeout. It may be called again if a successor fails.
//
// The hooks of RegisterOnShutdown are called later, when only hijacked and HTTP/2
// connections are left, and the clients of HTTP/2 were told to open new ones: too
// late to end an answer on HTTP/1.
func OnDrain(hook func()) Option {
	return func(a *app) { a.onDrain = append(a.onDrain, hook) }
}

// OnReady calls hook once, in a goroutine of its own, when this process serves: all its
// sockets are open, and its predecessor knows. Nobody waits for it.
func OnReady(hook func()) Option {
	return func(a *app) { a.onReady = append(a.onReady, hook) }
}

// OnMove calls hook, in a goroutine of its own, with each connection that the
// predecessor's program has moved, and what it said of it; see grace.Process.
func OnMove(hook func(c net.Conn, state []byte)) Option {
	return func(a *app) { a.process.OnMove = hook }
}

// PIDFile names a file that holds the process id of the generation that serves.
// It is replaced atomically, and removed by the last one. If it cannot be written, that
// is logged, and the process serves without it.
func PIDFile(path string) Option {
	return func(a *app) { a.process.PIDFile = path }
}

// Standby is how long this process stays after a handoff, when it is drained,
// ready to take over again if the successor fails; by default, and if d is not positive,
// not at all.
func Standby(d time.Duration) Option {
	return func(a *app) { a.process.Standby = max(0, d) }
}

// StoreListeners asks systemd to keep copies of the listening sockets over a
// crash of this process. The service needs FileDescriptorStoreMax=.
func StoreListeners() Option {
	return func(a *app) { a.process.StoreListeners = true }
}

// OnRestart calls hook with the outcome of each restart, for metrics: the
// successor's process id, 0 if none was started, how long it took, and why it
// failed, or nil. It is called again, with an error, if a successor fails after
// it was ready and before this process has ended.
func OnRestart(hook func(pid int, took time.Duration, err error)) Option {
	return func(a *app) { a.process.OnRestart = hook }
}

// An app is one call of Serve.
type app struct {
	process   grace.Process
	net       gracenet.Net
	idleGrace time.Duration
	drainRate int // clients a second; 0: all at once
	onDrain   []func()
	onReady   []func()
	servers   []*server
	given     []given
	unixMode  *fs.FileMode // nil: by the umask
	since     atomic.Pointer[time.Time]
}

// Serve serves all the servers until the process is told to stop, or a successor
// has taken over. It returns nil when every request is answered and every connection
// closed or moved. If it cannot listen on an address, it returns an error and leaves
// nothing listening. Only one Serve may run at a time. If one of the servers fails,
// the others are drained first; http.ErrServerClosed says that the program has called its
// Shutdown or Close, which may lose requests. To stop from within, send this
// process SIGTERM.
//
// A server's Addr is as in net/http: empty means ":http", or ":https" with a
// TLSConfig. "unix:/path" is a unix socket, and "systemd:NAME" a socket that
// systemd hands over by this FileDescriptorName=. A server with a TLSConfig
// serves TLS, and HTTP/2 with it, as http.Server.ServeTLS does. For HTTP/2 without TLS set
// its Protocols. Where golang.org/x/net/http2/h2c does that instead, a connection is a
// hijacked one, which nobody tells of a drain unless its http2.Server was given to
// http2.ConfigureServer; a TLSConfig without certificates that this has made is not TLS.
//
// While it serves, Handler, ConnState and ConnContext of a server are Serve's own, and
// call what was there before. So are the session ticket functions of a TLSConfig that
// does not manage tickets by itself. The http.ResponseWriter of HTTP/1 is Serve's own,
// too, with all methods of net/http's; only http.MaxBytesReader cannot let it close the
// connection.
func Serve(servers ...*http.Server) error {
	return ServeWithOptions(servers)
}

// ServeWithOptions is Serve with options.
func ServeWithOptions(servers []*http.Server, options ...Option) error {
	return ServeContext(context.Background(), servers, options...)
}

// ServeContext is ServeWithOptions; the end of ctx is a stop, as SIGTERM: for an errgroup,
// an application framework, or signal.NotifyContext. It counts before the process is ready
// too, and returns nil then.
func ServeContext(ctx context.Context, servers []*http.Server, options ...Option) error {
	a := &app{idleGrace: defaultIdleGrace, drainRate: defaultDrainRate}
	a.process.TermTimeout = defaultDrainTimeout
	for _, option := range options {
		option(a)
	}
	a.process.Logger = logger.Load()
	if !*verbose {
		a.process.Logger = silence
	}
	defer a.closeGiven()
	servers, err := a.withGiven(servers)
	if err != nil {
		return err
	}
	if len(servers) == 0 {
		return errors.New("gracehttp: no server to serve")
	}
	if !serving.CompareAndSwap(false, true) {
		return errors.New("gracehttp: Serve is running already")
	}
	defer serving.Store(false)
	if err := a.listen(servers); err != nil {
		return err
	}
	if len(a.onDrain) > 0 {
		a.process.OnDrain = func() { a.sideBySide("OnDrain", a.onDrain) }
	}
	a.process.OnReady = func() {
		a.becomeReady()
		a.logServing()
		a.sideBySide("OnReady", a.onReady)
	}
	current.Store(a)
	defer current.CompareAndSwap(a, nil)
	defer a.cut()
	return a.process.WaitContext(ctx, a.listeners())
}

// Restart restarts what Serve serves, as SIGUSR2 does, and waits for the
// outcome: the process id of the successor, which is ready and alone accepts now; or why
// there is none, such as grace.ErrUnderWay, as grace.Process.Restart returns it, with the
// process id of one that has failed, or 0 if none was started. The request in whose handler
// it is called is answered by this process.
func Restart() (pid int, err error) {
	a := current.Load()
	if a == nil {
		return 0, ErrNotServing
	}
	request := &handoff.Request{Outcome: make(chan handoff.Outcome, 1)}
	if !handoff.Self().Ask(request) {
		return 0, ErrNotServing
	}
	outcome := <-request.Outcome
	return outcome.Pid, outcome.Err
}

// sideBySide calls hooks, and returns when all have returned.
func (a *app) sideBySide(name string, hooks []func()) {
	var running []<-chan struct{}
	for _, hook := range hooks {
		done, _ := handoff.Call(a.process.Logger, name, func() error { hook(); return nil })
		running = append(running, done)
	}
	for _, done := range running {
		<-done
	}
}

// Move hands a connection of the program's own, such as one that was hijacked, to the
// successor, as grace.Process.Move does. It returns ErrNotServing if Serve is not running.
func Move(c net.Conn, state []byte) error {
	a := current.Load()
	if a == nil {
		return ErrNotServing
	}
	return a.process.Move(c, state)
}

func (a *app) listeners() []grace.Listener {
	listeners := make([]grace.Listener, len(a.servers))
	for i, s := range a.servers {
		listeners[i] = s
	}
	return listeners
}

// listen opens or inherits the socket of each server, or none.
func (a *app) listen(servers []*http.Server) error {
	var sockets []net.Listener
	var names []string
	for _, srv := range servers {
		l, name, err := a.open(srv)
		if err != nil {
			for _, l := range sockets {
				l.Close()
			}
			return fmt.Errorf("gracehttp: %w", err)
		}
		sockets = append(sockets, l)
		names = append(names, name)
	}
	for i, srv := range servers {
		if n := slices.Index(names, names[i]); n < i {
			names[i] += fmt.Sprintf(" (%d)", i) // another with the same address, on port 0
		}
		a.servers = append(a.servers, newServer(a, srv, sockets[i], names[i]))
	}
	return nil
}

// open opens or inherits the socket of a server, and returns what it was asked for.
func (a *app) open(srv *http.Server) (l net.Listener, name string, err error) {
	network, addr := address(srv)
	l = a.givenTo(srv)
	if l != nil {
		network, addr = l.Addr().Network(), l.Addr().String()
	} else if addr == "" {
		return nil, "", fmt.Errorf("server %q: no path", srv.Addr)
	}
	if isTLS(srv) && !hasCertificate(srv.TLSConfig) { // ServeTLS would fail, when no predecessor serves any more
		return nil, "", fmt.Errorf("server %s: its TLSConfig has no certificate", addr)
	}
	if l == nil {
		l, err = a.openSocket(network, addr)
	}
	return l, network + " " + addr, err
}

// address returns where a server wants to listen.
func address(srv *http.Server) (network, addr string) {
	if path, ok := strings.CutPrefix(srv.Addr, "unix:"); ok {
		return "unix", path
	}
	switch {
	case srv.Addr != "":
		return "tcp", srv.Addr
	case isTLS(srv):
		return "tcp", ":https"
	default:
		return "tcp", ":http"
	}
}

// cut closes whatever is still open.
func (a *app) cut() {
	for _, s := range a.servers {
		s.cut()
	}
}

func (a *app) logf(format string, args ...any) {
	handoff.Logf(a.process.Logger, format, args...)
}

func (a *app) logServing() {
	var addrs []string
	for _, s := range a.servers {
		addrs = append(addrs, s.Addr().String())
	}
	from := ""
	switch handoff.Self().Origin {
	case handoff.Activated:
		from = " on sockets from systemd"
	case handoff.Succeeded, handoff.SucceededLegacy:
		from = fmt.Sprintf(", taking over from pid %d", handoff.Self().Predecessor.Pid)
	}
	a.logf("Serving %s with pid %d%s.", strings.Join(addrs, ", "), os.Getpid(), from)
}
