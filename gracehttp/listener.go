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
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
)

// Listener lets srv serve on l, instead of opening a socket for its Addr. l has to come
// from package gracenet, or to wrap a listener that does: one for the PROXY protocol,
// netutil.LimitListener, TLS of one's own, a network such as tcp4, a socket opened
// before privileges were dropped, or with options that gracenet.Net's ListenConfig sets.
// The successor opens it the same way, and inherits the socket. l is Serve's, which closes
// it, also when Serve fails. srv need not be among the servers that Serve is called with. If
// it has a TLSConfig, TLS is served on top of l; leave that nil if l speaks TLS itself.
//
// Connections that l accepts as a type of its own do not move to the successor: they are
// finished here, as TLS is. net/http sees them through a net.Conn with a method NetConn that
// returns the wrapper's; ConnState and ConnContext get that itself. A *tls.Conn's handshake
// is made before net/http has it.
//
// A wrapper stops accepting when the deadline of the one gracenet socket on its Addr, or
// its own SetDeadline, ends its Accept with an error that is os.ErrDeadlineExceeded. One
// that has neither is closed instead. Then, if the successor fails after it was ready,
// srv is not served again: Serve goes on with the other servers, or if there are none
// returns an error, so that a service manager starts the program anew. At a stop,
// connections that wait in the kernel are refused.
func Listener(srv *http.Server, l net.Listener) Option {
	return func(a *app) { a.given = append(a.given, given{srv, l}) }
}

// A given listener was opened by the program.
type given struct {
	srv *http.Server
	l   net.Listener
}

// givenTo returns the listener that the program has opened for a server, or nil.
func (a *app) givenTo(srv *http.Server) net.Listener {
	for _, g := range a.given {
		if g.srv == srv {
			return g.l
		}
	}
	return nil
}

// withGiven returns servers and those that only listeners were given for.
func (a *app) withGiven(servers []*http.Server) ([]*http.Server, error) {
	for i, g := range a.given {
		if slices.ContainsFunc(a.given[:i], func(other given) bool { return other.srv == g.srv }) {
			return nil, fmt.Errorf("gracehttp: two listeners for one server, the second on %s", g.l.Addr())
		}
		if !slices.Contains(servers, g.srv) {
			servers = append(servers[:len(servers):len(servers)], g.srv)
		}
	}
	return servers, nil
}

func (a *app) closeGiven() {
	for _, g := range a.given {
		g.l.Close()
	}
}

// isPlain reports whether a listener is one of package net's: what it accepts can move.
func isPlain(l net.Listener) bool {
	switch l.(type) {
	case *net.TCPListener, *net.UnixListener:
		return true
	}
	return false
}

// under returns the socket under a wrapper: the only one of the process that has its
// address.
func under(wrapper net.Listener) socket {
	addr := wrapper.Addr()
	var found []net.Listener
	handoff.Self().Find(func(s *handoff.Socket) bool {
		if l := s.Listener(); l != nil && l.Addr().Network() == addr.Network() && l.Addr().String() == addr.String() {
			found = append(found, l)
		}
		return false
	})
	if len(found) == 1 {
		if s, ok := found[0].(socket); ok {
			return s
		}
	}
	return unknownSocket{wrapper}
}

// An unknownSocket is a wrapper, whose socket cannot be told.
type unknownSocket struct{ net.Listener }

func (unknownSocket) SyscallConn() (syscall.RawConn, error) { return nil, errors.ErrUnsupported }
func (unknownSocket) File() (*os.File, error)               { return nil, errors.ErrUnsupported }

func (u unknownSocket) SetDeadline(t time.Time) error {
	if d, ok := u.Listener.(interface{ SetDeadline(time.Time) error }); ok {
		return d.SetDeadline(t)
	}
	return errors.ErrUnsupported
}

// A wrappedConn is a connection of a wrapper's own type.
type wrappedConn struct {
	wrappedMethods
	conn
}

type wrappedMethods struct{ net.Conn }

// NetConn returns what the program's listener has accepted.
func (w wrappedMethods) NetConn() net.Conn { return w.Conn }

// ReadFrom lets net/http find the ReadFrom of what is wrapped.
func (w wrappedMethods) ReadFrom(r io.Reader) (int64, error) { return io.Copy(w.Conn, r) }

// CloseWrite is that of what is wrapped, if it has one.
func (w wrappedMethods) CloseWrite() error {
	if c, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// A wrappedRaw is a rawConn that may not know its descriptor.
type wrappedRaw struct{ wrappedMethods }

func (w wrappedRaw) SyscallConn() (syscall.RawConn, error) {
	for c := w.Conn; ; {
		if s, ok := c.(syscall.Conn); ok {
			return s.SyscallConn()
		}
		n, ok := c.(interface{ NetConn() net.Conn })
		if !ok {
			return nil, errors.ErrUnsupported
		}
		c = n.NetConn()
	}
}

// accepted returns a connection as the program knows it.
func accepted(nc net.Conn) net.Conn {
	if w, ok := nc.(*wrappedConn); ok {
		return w.Conn
	}
	return nc
}

// tlsState returns the state of TLS that the program's listener speaks, or nil: net/http asks
// what it has for a connection itself.
func (c *conn) tlsState() *tls.ConnectionState {
	if w, ok := c.raw.(wrappedRaw); ok {
		if t, ok := w.Conn.(interface{ ConnectionState() tls.ConnectionState }); ok {
			state := t.ConnectionState()
			return &state
		}
	}
	return nil
}

// passed has those connections that net/http knows as what the program's listener has
// accepted: a *tls.Conn that speaks HTTP/2, or whose handshake has failed.
var passed sync.Map // of *tls.Conn to *conn

// closePassed takes one off the list that net/http has closed.
func closePassed(t *tls.Conn) {
	if c, ok := passed.LoadAndDelete(t); ok {
		c.(*conn).Close()
	}
}

// handshake lets a connection that speaks TLS be served, once that says which HTTP
// it is: HTTP/2 needs the *tls.Conn, and nothing of ours between requests. What is to be said
// of a handshake that has failed, net/http says.
func (s *server) handshake(t *tls.Conn, wrapped net.Conn, c *conn) {
	ctx, cancel := context.Background(), func() {}
	if timeout := handshakeTimeout(s.user); timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer func() {
		if r := recover(); r != nil { // a function of the program's, in the TLS config
			logf := log.Printf
			if s.user.ErrorLog != nil {
				logf = s.user.ErrorLog.Printf
			}
			logf("http: panic serving %v: %v\n%s", t.RemoteAddr(), r, debug.Stack())
			wrapped.Close()
		}
	}()
	defer cancel()
	err := t.HandshakeContext(ctx)
	if err == nil && t.ConnectionState().NegotiatedProtocol != "h2" {
		s.inject(wrapped)
		return
	}
	c.mu.Lock()
	c.state.Store(first)
	if err == nil {
		c.become(accept.HTTP2)
		t.SetReadDeadline(time.Time{}) // it may have been a drain's
	}
	c.mu.Unlock()
	passed.Store(t, c)
	s.inject(t)
}

// handshakeTimeout returns how long net/http lets a TLS handshake take, if that is not 0.
func handshakeTimeout(srv *http.Server) (timeout time.Duration) {
	for _, d := range []time.Duration{srv.ReadHeaderTimeout, srv.ReadTimeout, srv.WriteTimeout} {
		if d > 0 && (timeout == 0 || d < timeout) {
			timeout = d
		}
	}
	return timeout
}
