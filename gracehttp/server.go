package gracehttp

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"net/http"
	"os"
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
// listener that accepts by itself and knows how to drain (handoff.Server).
type server struct {
	draining atomic.Pointer[drain] // nil: not draining
	handler  http.Handler          // the user's, or one for http.DefaultServeMux
	tls      bool
	proto    map[string]func(*http.Server, *tls.Conn, http.Handler)
	app      *app
	gate     *accept.Gate
	socket
	user *http.Server // as Serve was given it

	http1     atomic.Int64  // open connections that are neither HTTP/2 nor hijacked
	http2     atomic.Int64  // those that speak HTTP/2
	changed   chan struct{} // one of these may have become 0
	movedAway atomic.Int64  // connections that the successor has taken in this drain
	hooks     atomic.Int64  // calls of userShutdown that are ours, and still to come

	accepting func() // called when the http.Server first accepts
	begun     sync.Once

	mu      sync.Mutex   // guards what follows
	http    *http.Server // the one that serves: the user's, or its copy after a failed handoff
	shut    bool         // we have called its Shutdown
	parked  bool         // Serve waits for what follows on that, or has returned
	closed  bool
	changes sync.Cond // of shut, parked or closed
	moved   *movedListener
	spare   []tcpConn // for connections to come
}

func newServer(a *app, srv *http.Server, l socket, name string) *server {
	s := &server{
		socket:  l,
		app:     a,
		gate:    accept.New(l),
		user:    srv,
		http:    srv,
		tls:     srv.TLSConfig != nil,
		handler: srv.Handler,
		changed: make(chan struct{}, 1),
	}
	s.changes.L = &s.mu
	s.gate.Pause() // until Resume
	if srv.TLSNextProto != nil {
		s.proto = maps.Clone(srv.TLSNextProto)
		for name, serve := range s.proto {
			if name != "h2" {
				s.proto[name] = otherProtocol(serve)
			}
		}
		srv.TLSNextProto = maps.Clone(s.proto) // net/http adds to it
	}
	if s.handler == nil {
		s.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.DefaultServeMux.ServeHTTP(w, r)
		})
	}
	srv.Handler = s
	if hook := srv.ConnState; hook != nil {
		srv.ConnState = func(nc net.Conn, state http.ConnState) {
			hook(nc, state) // first: a deadline that it sets is not to be taken for net/http's
			follow(nc, state)
		}
	} else {
		srv.ConnState = follow
	}
	srv.RegisterOnShutdown(s.userShutdown)
	if s.tls {
		keepTickets(srv, name)
	} else {
		handoff.Self().Receive(l, s.take)
	}
	return s
}

// otherProtocol lets connections that speak a protocol of the user's own count as
// hijacked ones: net/http tells nothing of their states.
func otherProtocol(serve func(*http.Server, *tls.Conn, http.Handler)) func(*http.Server, *tls.Conn, http.Handler) {
	return func(srv *http.Server, c *tls.Conn, h http.Handler) {
		if core := coreOf(c); core != nil {
			core.mu.Lock()
			core.leave()
			core.mu.Unlock()
		}
		serve(srv, c, h)
	}
}

// checkTLS finds what would make ServeTLS fail, while a predecessor still serves.
func checkTLS(srv *http.Server) error {
	c := srv.TLSConfig
	if c != nil && len(c.Certificates) == 0 && c.GetCertificate == nil && c.GetConfigForClient == nil {
		return errors.New("its TLSConfig has no certificate")
	}
	return nil
}

// ServeHTTP calls the user's handler.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if d := s.draining.Load(); d != nil && d.tells(r) {
		w.Header().Set("Connection", "close") // on HTTP/2, net/http makes that a GOAWAY
	}
	s.handler.ServeHTTP(w, r)
}

// upgrades reports whether the answer may be another protocol on the same
// connection. HTTP/2 is none: net/http ignores that wish.
func upgrades(r *http.Request) bool {
	to := r.Header.Get("Upgrade")
	return to != "" && to != "h2c"
}

// Serve implements handoff.Server.
func (s *server) Serve(accepting func()) error {
	s.accepting = accepting
	for {
		s.mu.Lock()
		srv := s.http
		s.mu.Unlock()
		err := s.serveOn(srv, &httpListener{s})

		s.mu.Lock()
		ours := s.shut || s.closed
		s.parked = true
		s.changes.Broadcast()
		for ours && s.shut && !s.closed {
			s.changes.Wait()
		}
		closed := s.closed
		s.parked = closed || !ours
		s.mu.Unlock()
		switch {
		case closed:
			return nil
		case !ours:
			return err
		}
		// The successor has failed after Shutdown: go on with a copy.
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
	s.begun.Do(s.accepting)
	c, err := s.gate.Accept()
	if err != nil {
		return nil, err
	}
	wrapped, core := s.wrap(c)
	s.admit(core, s.gate.Admit)
	return wrapped, nil
}

// admit enters a connection in the book. A drain that has begun meanwhile may
// have missed it.
func (s *server) admit(c *conn, enter func(*accept.Entry)) {
	s.http1.Add(1)
	enter(&c.entry)
	if s.draining.Load() != nil {
		c.kick()
	}
}

// left is called when a connection is closed, or no longer speaks HTTP/1.
func (s *server) left() {
	if s.http1.Add(-1) == 0 {
		s.change()
	}
}

// change wakes a drain.
func (s *server) change() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Close ends the server. After Drain there is nothing left to wait for.
func (s *server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.changes.Broadcast()
	s.mu.Unlock()
	return s.gate.Close()
}

// cut closes the server and all that is still open.
func (s *server) cut() {
	s.Close()
	s.mu.Lock()
	srv := s.http
	s.mu.Unlock()
	srv.Close()
	for _, e := range s.gate.Entries() {
		e.Conn.(*conn).raw.Close()
	}
}

// Count returns what is open.
func (s *server) Count() (c accept.Count) {
	c.Open, c.Oldest = s.gate.Active()
	c.HTTP2 = int(s.http2.Load())
	c.Moved = int(s.movedAway.Load())
	return c
}

// An httpListener is what the http.Server has for a listener. Closing it ends
// its Accept, but the socket stays open: it may be needed again.
type httpListener struct{ *server }

func (l *httpListener) Close() error {
	l.gate.End()
	return nil
}

// A movedListener brings connections to the http.Server that did not come
// through the listening socket.
type movedListener struct {
	*server
	conns chan net.Conn
	ended chan struct{}
	once  sync.Once
}

func (l *movedListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ended:
		return nil, net.ErrClosed
	}
}

func (l *movedListener) Close() error {
	l.once.Do(func() { close(l.ended) })
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
		c.Close()
	}
}

// take serves connections that the predecessor has handed over.
func (s *server) take(conns []*os.File) {
	for _, f := range conns {
		c := &conn{}
		c.init(s, f)
		s.admit(c, s.gate.Add)
		go s.park(c, f)
	}
}

// park holds a connection until its next request begins, so that the clocks of
// ReadHeaderTimeout and ReadTimeout do not start before.
func (s *server) park(c *conn, f *os.File) {
	defer c.Close()
	idle := s.user.IdleTimeout
	if idle == 0 {
		idle = s.user.ReadTimeout
	}
	if idle > 0 {
		c.setReadDeadline(time.Now().Add(idle))
	}
	if !c.awaitInput() {
		return
	}
	nc, err := s.connOf(f)
	if err != nil {
		return
	}
	if nc.RemoteAddr() == nil {
		nc.Close() // the client has reset it: nobody can be answered
		return
	}
	wrapped, core := s.wrap(nc)
	core.shared = c.shared
	s.admit(core, s.gate.Add)
	c.Close() // its place is taken; its file is closed already
	s.inject(wrapped)
}

// connOf makes a connection of a file, which it closes. That takes one more
// descriptor for a moment.
func (s *server) connOf(f *os.File) (net.Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if !isTemporary(err) {
		return c, err
	}
	s.app.logf("%s: connection from a predecessor: %v; trying again until it works", s.Addr(), err)
	for wait := 5 * time.Millisecond; isTemporary(err); wait = min(2*wait, time.Second) {
		time.Sleep(wait)
		c, err = net.FileConn(f)
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
	s.partHTTP2()
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

// Resume undoes Drain.
func (s *server) Resume() bool {
	s.app.serving.Do(s.app.logServing)
	s.draining.Store(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		// An http.Server that was shut down cannot serve again. It closes its
		// listener, which ends the gate, before Serve is parked.
		for !s.parked && !s.closed {
			s.changes.Wait()
		}
		s.http = s.copyHTTP()
		s.moved = nil
		s.shut = false
		s.gate.Reopen()
		s.changes.Broadcast()
	}
	return s.gate.Resume()
}

func (s *server) copyHTTP() *http.Server {
	u := s.user
	return &http.Server{
		Addr:                         u.Addr,
		Handler:                      u.Handler,
		DisableGeneralOptionsHandler: u.DisableGeneralOptionsHandler,
		TLSConfig:                    u.TLSConfig,
		ReadTimeout:                  u.ReadTimeout,
		ReadHeaderTimeout:            u.ReadHeaderTimeout,
		WriteTimeout:                 u.WriteTimeout,
		IdleTimeout:                  u.IdleTimeout,
		MaxHeaderBytes:               u.MaxHeaderBytes,
		TLSNextProto:                 maps.Clone(s.proto), // net/http adds to it
		ConnState:                    u.ConnState,
		ErrorLog:                     u.ErrorLog,
		BaseContext:                  u.BaseContext,
		ConnContext:                  u.ConnContext,
		HTTP2:                        u.HTTP2,
		Protocols:                    u.Protocols,
	}
}
