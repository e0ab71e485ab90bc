package gracehttp

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"net/http"
	"os"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
)

// A socket is a listener that a successor can inherit.
type socket interface {
	net.Listener
	syscall.Conn
	File() (*os.File, error)
	SetDeadline(time.Time) error
}

// A server is one http.Server on its listening socket. To grace.Process it is a
// listener that accepts by itself and knows how to drain.
type server struct {
	draining atomic.Pointer[drain] // nil: not draining
	handler  http.Handler          // the user's; nil: http.DefaultServeMux
	tls      bool
	plain    bool // it accepts from the socket itself, not from a wrapper of the program's
	proto    map[string]func(*http.Server, *tls.Conn, http.Handler)
	app      *app
	listener *accept.Listener
	socket                // another after Resume, if it was closed: only the loop asks for it meanwhile
	addr     net.Addr     // and this never changes
	user     *http.Server // as Serve was given it

	options         bool // OPTIONS * is answered here, not by the handler
	hasShutdownHook bool // the user has registered one, which may end hijacked connections

	hooks atomic.Int64 // calls of userShutdown that are ours, and still to come
	kept  atomic.Bool  // the program has tried to close idle connections during a drain

	accepting func()     // called when the http.Server first accepts
	end       chan error // what Serve returns

	mu      sync.Mutex    // guards what follows
	http    *http.Server  // the one that serves: the user's, or its copy after a failed handoff
	accepts *httpListener // its listener, or nil while there is none
	shut    bool          // we have called its Shutdown
	unbound bool          // we have closed the socket, since the successor does not want it
	closed  bool
	ended   accept.Count // what became of connections since the drain began
	moved   *movedListener
}

func newServer(a *app, srv *http.Server, l net.Listener, name string) *server {
	s := &server{
		app:     a,
		plain:   isPlain(l),
		user:    srv,
		http:    srv,
		tls:     isTLS(srv),
		options: !srv.DisableGeneralOptionsHandler,
		handler: srv.Handler,
		end:     make(chan error, 1),
	}
	if s.plain {
		s.socket, s.listener = l.(socket), accept.New(l)
	} else {
		s.socket = under(l)
		s.listener = accept.NewWrapped(l, s.socket)
	}
	s.addr = s.socket.Addr()
	s.listener.Pause() // until Resume
	if srv.TLSNextProto != nil {
		s.proto = maps.Clone(srv.TLSNextProto)
		for name, serve := range s.proto {
			if name != "h2" {
				s.proto[name] = otherProtocol(serve)
			}
		}
		srv.TLSNextProto = maps.Clone(s.proto) // net/http adds to it
	}
	srv.Handler = s
	srv.DisableGeneralOptionsHandler = true // what net/http answers there tells no client to leave
	connState, connContext := srv.ConnState, srv.ConnContext
	srv.ConnState = func(nc net.Conn, state http.ConnState) {
		if connState != nil {
			connState(accepted(nc), state) // first: a deadline that it sets is not to be taken for net/http's
		}
		follow(nc, state)
	}
	srv.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
		if connContext != nil {
			ctx = connContext(ctx, accepted(nc))
		}
		if c := coreOf(nc); c != nil && ctx != nil { // net/http says what is wrong with nil
			return context.WithValue(ctx, connKey{}, c)
		}
		return ctx
	}
	s.hasShutdownHook = hasShutdownHook(srv)
	srv.RegisterOnShutdown(s.userShutdown)
	if s.tls {
		keepTickets(srv, name)
	} else {
		handoff.Self().Receive(s.socket, s.take)
	}
	return s
}

// otherProtocol lets connections that speak a protocol of the user's own count as
// hijacked ones: net/http tells nothing of their states.
func otherProtocol(serve func(*http.Server, *tls.Conn, http.Handler)) func(*http.Server, *tls.Conn, http.Handler) {
	return func(srv *http.Server, c *tls.Conn, h http.Handler) {
		if core := coreOf(c); core != nil {
			core.mu.Lock()
			core.become(accept.Hijacked)
			core.mu.Unlock()
		}
		serve(srv, c, h)
	}
}

// isTLS reports whether a server serves TLS. One whose TLSConfig has no certificate, but
// offers HTTP/2, was configured by golang.org/x/net/http2 for use without TLS.
func isTLS(srv *http.Server) bool {
	return srv.TLSConfig != nil && (hasCertificate(srv.TLSConfig) || !slices.Contains(srv.TLSConfig.NextProtos, "h2"))
}

func hasCertificate(c *tls.Config) bool {
	return len(c.Certificates) > 0 || c.GetCertificate != nil || c.GetConfigForClient != nil
}

// hasShutdownHook reports whether RegisterOnShutdown was called. Nobody else may call it
// meanwhile.
func hasShutdownHook(srv *http.Server) bool {
	hooks := reflect.ValueOf(srv).Elem().FieldByName("onShutdown")
	return hooks.IsValid() && hooks.Kind() == reflect.Slice && hooks.Len() > 0
}

// Addr is that of the socket.
func (s *server) Addr() net.Addr { return s.addr }

// Serve serves until Close, or fails.
func (s *server) Serve(accepting func()) error {
	s.accepting = sync.OnceFunc(accepting)
	s.serve()
	return <-s.end
}

// serve lets the http.Server serve, until that is shut down or the socket is closed.
func (s *server) serve() {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := &httpListener{server: s, srv: s.http, end: sync.OnceFunc(s.listener.End), over: make(chan struct{})}
	s.accepts = l
	go func() {
		err := s.serveOn(l.srv, l)
		l.end() // if it has failed before it began
		close(l.over)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.accepts == l && !s.shut && !s.unbound {
			s.finish(err)
		}
	}()
}

// finish lets Serve return, with the first error that this is called with.
func (s *server) finish(err error) {
	select {
	case s.end <- err:
	default:
	}
}

func (s *server) serveOn(srv *http.Server, l net.Listener) error {
	if s.tls {
		return srv.ServeTLS(l, "", "")
	}
	return srv.Serve(l)
}

// Accept implements net.Listener; it is called through httpListener.
func (s *server) Accept() (net.Conn, error) {
	s.accepting()
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return nil, err
		}
		wrapped, core := s.wrap(c)
		s.admit(core, s.listener.Admit)
		t, ok := c.(*tls.Conn)
		if !ok {
			return wrapped, nil
		}
		go s.handshake(t, wrapped, core)
	}
}

// admit lists a connection. A drain that has begun meanwhile may have missed it.
func (s *server) admit(c *conn, list func(*accept.Entry)) {
	list(&c.entry)
	if s.draining.Load() != nil {
		c.wake()
	}
}

// closedByProgram reports whether an idle connection that somebody else than its reader
// closes in a drain, by SetKeepAlivesEnabled(false) or Shutdown, can stay: a request may
// be on its way. TLS has told the client already.
func (s *server) closedByProgram() (stays bool) {
	if !s.kept.Swap(true) && s.tls {
		s.app.logf("%s: the program closes idle connections during the drain; requests that are on their way are lost", s.Addr())
	}
	return !s.tls
}

// Close ends the server. After Drain there is nothing left to wait for.
func (s *server) Close() error {
	s.close()
	return s.listener.Close()
}

func (s *server) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.kept.Store(true) // what is closed from now on, we close
	s.finish(nil)
}

// CloseLast is Close, but what waits in the kernel is served, unless systemd has the socket.
func (s *server) CloseLast() {
	s.close()
	if handoff.Self().Activated(s.socket) {
		s.listener.Close()
		return
	}
	s.mu.Lock()
	shut := s.shut && !s.unbound
	s.mu.Unlock()
	if shut && s.renew() {
		s.serve()
	}
	s.listener.CloseLast(false) // the successor may accept for some time yet
}

// cut closes the server and all that is still open, at once: net/http would close one
// connection after the other, and wait for the client of each.
func (s *server) cut() {
	s.Close()
	for _, e := range s.listener.Entries() {
		e.Conn.(*conn).cut()
	}
	s.mu.Lock()
	srv := s.http
	s.mu.Unlock()
	srv.Close()
}

// An httpListener is what an http.Server has for a listener. Closing it ends
// its Accept, but the socket stays open: it may be needed again.
type httpListener struct {
	*server
	srv  *http.Server
	end  func()        // ends Accept
	over chan struct{} // closed when the http.Server has seen that
}

// Accept returns what is accepted. A wrapper may do that late, when this http.Server was
// shut down, and its copy serves.
func (l *httpListener) Accept() (net.Conn, error) {
	c, err := l.server.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	replaced := l.http != l.srv
	l.mu.Unlock()
	if replaced {
		l.inject(c)
		return nil, net.ErrClosed
	}
	return c, nil
}

func (l *httpListener) Close() error {
	l.end()
	return nil
}

// A movedListener brings connections to the http.Server that did not come
// through the listening socket.
type movedListener struct {
	*server
	conns chan net.Conn
	ended chan struct{}
}

func (l *movedListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

// Close is called once by an http.Server.
func (l *movedListener) Close() error {
	close(l.ended)
	return nil
}

// inject lets the http.Server serve a connection.
func (s *server) inject(c net.Conn) {
	s.mu.Lock()
	l := s.moved
	if l == nil {
		l = &movedListener{server: s, conns: make(chan net.Conn), ended: make(chan struct{})}
		s.moved = l
		go s.serveOn(s.http, l)
	}
	s.mu.Unlock()
	select {
	case l.conns <- c:
	case <-l.ended:
		coreOf(c).Close()
		passed.Delete(c)
	}
}

// take serves connections that the predecessor has handed over.
func (s *server) take(conns []*os.File, waiting []handoff.Waiting) {
	for i, f := range conns {
		var w handoff.Waiting
		if waiting != nil {
			w = waiting[i]
		}
		c := &conn{used: !w.First}
		c.init(s, f)
		c.since = c.since.Add(-time.Duration(w.For) * time.Millisecond)
		s.admit(c, s.listener.Add)
		go s.park(c, f)
	}
}

// refuse takes no more connections over from our predecessor, which finishes them.
func (s *server) refuse() { handoff.Self().Receive(s.socket, nil) }

// park holds a connection until its next request begins: net/http's clocks for that
// must not start before, while the one for waiting goes on where it was.
func (s *server) park(c *conn, f *os.File) {
	defer c.Close()
	timeout := cmp.Or(s.user.ReadHeaderTimeout, s.user.ReadTimeout)
	if c.used {
		timeout = cmp.Or(s.user.IdleTimeout, s.user.ReadTimeout)
	}
	var limit time.Time
	if timeout > 0 {
		limit = c.since.Add(timeout)
		c.setReadDeadline(limit)
	}
	if !c.awaitInput() {
		return
	}
	nc, err := s.netConn(f)
	if err != nil {
		return
	}
	wrapped, core := s.wrap(nc)
	core.shared, core.since, core.used = c.shared, c.since, c.used
	// net/http ends the wait for a first request with its header, else with four bytes.
	core.limit, core.missing = limit, -1
	if c.used {
		core.missing = 4
	}
	nc.SetReadDeadline(limit)
	s.admit(core, s.listener.Add)
	c.Close() // its place is taken; its file is closed already
	s.inject(wrapped)
}

// netConn makes a connection of a file, which it closes. That takes one more
// descriptor for a moment.
func (s *server) netConn(f *os.File) (net.Conn, error) {
	defer f.Close()
	defer accept.KeepOptions(f)()
	c, err := accept.FileConn(f)
	if !isTemporary(err) {
		return c, err
	}
	s.app.logf("%s: connection from a predecessor: %v; trying again until it works", s.Addr(), err)
	for wait := 5 * time.Millisecond; isTemporary(err); wait = min(2*wait, time.Second) {
		time.Sleep(wait)
		c, err = accept.FileConn(f)
	}
	return c, err
}

// isTemporary reports whether an error is one of those after which net/http
// tries to accept again, such as too many open files.
func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// shutdown lets net/http end HTTP/2 connections, and run the hooks that the user
// has registered. No HTTP/1 connection may be open: a request that was just read
// on one would go unanswered.
func (s *server) shutdown(ctx context.Context) {
	s.mu.Lock()
	s.shut = true
	srv := s.http
	s.mu.Unlock()
	s.hooks.Add(1)
	go s.user.Shutdown(ctx)
	if srv != s.user {
		go srv.Shutdown(ctx)
	}
}

// userShutdown runs, some time, for each call of the user's Shutdown. If that was
// not ours, and a copy serves in the user's place, it is meant for the copy.
func (s *server) userShutdown() {
	if s.hooks.Add(-1) >= 0 {
		return
	}
	s.hooks.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.http != s.user && !s.closed {
		go s.http.Shutdown(context.Background())
	}
}

// Resume undoes Drain, and reports whether the server accepts again.
func (s *server) Resume() bool {
	s.draining.Store(nil)
	if !s.plain {
		for _, e := range s.listener.Entries() {
			e.Conn.(*conn).wake() // which ends its time
		}
	}
	s.mu.Lock()
	ends, over := s.shut || s.unbound, s.accepts.over
	s.mu.Unlock()
	if ends {
		var late <-chan time.Time
		if !s.plain { // its Accept may wait for something else: what it brings later is served all the same
			late = time.After(accept.WrapperTimeout)
		}
		select {
		case <-over:
		case <-late:
		}
		if !s.renew() {
			return false
		}
		defer s.serve()
	}
	if s.kept.Swap(false) {
		s.http.SetKeepAlivesEnabled(true) // the program meant the drain
	}
	return s.listener.Resume()
}

// renew opens the socket anew if it was closed, and replaces an http.Server that was shut
// down, which cannot serve again. It reports whether there is a socket.
func (s *server) renew() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unbound && !s.listen() {
		return false
	}
	s.accepts = nil
	if s.shut {
		s.http = s.copyHTTP()
		s.moved = nil
		s.shut = false
		s.listener.Reopen()
	}
	return true
}

// closeSocket lets clients be refused, or another process listen. If we are the last, what
// waits in the kernel is served.
func (s *server) closeSocket(last bool) {
	s.mu.Lock()
	s.unbound = true
	s.mu.Unlock()
	if last {
		s.listener.CloseLast(s.app.givenTo(s.user) == nil && handoff.Self().Alone(s.socket))
	} else {
		s.listener.Close()
	}
}

// listen opens the socket anew, and reports whether it could. The caller holds s.mu.
func (s *server) listen() bool {
	if !s.plain {
		s.app.logf("%s: not served again: the program's listener was closed", s.addr)
		return false
	}
	l, err := s.app.openSocket(s.addr.Network(), s.addr.String())
	if err != nil {
		s.app.logf("%s: not served again: %v", s.addr, err)
		return false
	}
	s.socket = l.(socket)
	s.app.setMode(s)
	s.listener.Replace(l)
	s.unbound = false
	return true
}

// copyHTTP returns a server with all that the program has set of its own.
func (s *server) copyHTTP() *http.Server {
	copied := &http.Server{}
	from, to := reflect.ValueOf(s.user).Elem(), reflect.ValueOf(copied).Elem()
	for i := range from.NumField() {
		if from.Type().Field(i).IsExported() {
			to.Field(i).Set(from.Field(i))
		}
	}
	copied.TLSNextProto = maps.Clone(s.proto) // net/http adds to it
	return copied
}
