package grace

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
)

// NewListener returns a Listener that counts the connections which it accepts
// from l, until they are closed.
//
// Its Close stops accepting, closes l, and returns when the last connection is
// closed, with the error of closing l. It may be called more than once and from
// several goroutines: each call waits. From then on Accept returns
// ErrAlreadyClosed. A connection that was accepted while Close was called is
// still returned, and counted.
//
// While a Wait with this listener drains, its Close does not wait: Wait is what waits. So
// http.Server.Shutdown, grpc.Server.GracefulStop and the like, which close their listeners
// first, may be called by Process.OnDrain. Elsewhere they would wait for connections that
// they have not told yet: call them in a goroutine of their own there, after telling those.
// Where no other process accepts after that, Accept returns who waits in the kernel first;
// what is left when it was not called for a second, and all is closed, is closed, too.
//
// What Accept returns embeds l's *net.TCPConn or *net.UnixConn, and so has ReadFrom,
// CloseWrite, SyscallConn and the rest. A connection of any other type is only a
// net.Conn. A Listener that NewListener has made is returned as it is.
func NewListener(l Listener) Listener {
	switch l := l.(type) {
	case *listener:
		return l
	case *net.TCPListener, *net.UnixListener:
		return &listener{Listener: l, open: accept.New(l)}
	}
	// Any other's Accept may wait for something else, which no deadline ends.
	pauser, _ := l.(accept.Pauser)
	return &listener{Listener: l, open: accept.NewWrapped(l, pauser)}
}

// A listener is a Listener that counts. Its methods beyond that interface are
// for Process.
type listener struct {
	Listener
	open     *accept.Listener
	draining atomic.Bool // Wait waits for the connections
	last     atomic.Bool // in that, no other process will accept
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.open.Accept()
	if errors.Is(err, net.ErrClosed) {
		return nil, ErrAlreadyClosed
	}
	if err != nil {
		return nil, err
	}
	return l.count(c), nil
}

func (l *listener) Close() error {
	err := l.close()
	if !l.draining.Load() {
		l.open.Wait(context.Background())
	}
	return err
}

// CloseLast implements drainer.
func (l *listener) CloseLast() {
	l.last.Store(!handoff.Self().Activated(l.Listener))
	l.Close()
}

func (l *listener) close() error {
	if l.last.Load() {
		return l.open.CloseLast(false) // the program may have given it to others
	}
	return l.open.Close()
}

// Drain implements drainer. The socket stays open for Resume if there
// is a successor that serves on it.
func (l *listener) Drain(ctx context.Context, how handoff.Drain) error {
	var err error
	if how.To == nil || !how.To.Keeps(l) || !l.open.Pause() {
		err = l.close()
	}
	how.Paused()
	if errors.Is(err, net.ErrClosed) {
		err = nil // the program was faster
	}
	return errors.Join(err, l.open.Wait(ctx))
}

func (l *listener) Resume() bool { return l.open.Resume() }

func (l *listener) Count() accept.Count { return l.open.Count() }

// SyscallConn gives access to the descriptor without a copy.
func (l *listener) SyscallConn() (syscall.RawConn, error) {
	if c, ok := l.Listener.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

// SetDeadline bounds the calls of Accept, as (*net.TCPListener).SetDeadline.
func (l *listener) SetDeadline(t time.Time) error {
	if d, ok := l.Listener.(interface{ SetDeadline(time.Time) error }); ok {
		return d.SetDeadline(t)
	}
	return errors.ErrUnsupported
}

// SetUnlinkOnClose is (*net.UnixListener).SetUnlinkOnClose.
func (l *listener) SetUnlinkOnClose(unlink bool) {
	if u, ok := l.Listener.(interface{ SetUnlinkOnClose(bool) }); ok {
		u.SetUnlinkOnClose(unlink)
	}
}

// The counted connections embed the concrete type, so that io.Copy still finds
// ReadFrom and WriteTo (sendfile, splice), and callers the rest.

type tcpConn struct {
	*net.TCPConn
	entry accept.Entry
	from  *accept.Listener
}

type unixConn struct {
	*net.UnixConn
	entry accept.Entry
	from  *accept.Listener
}

type otherConn struct {
	net.Conn
	entry accept.Entry
	from  *accept.Listener
}

// count enters a connection that was just accepted.
func (l *listener) count(c net.Conn) net.Conn { return countIn(l.open, l.open.Admit, c) }

func countIn(from *accept.Listener, enter func(*accept.Entry), c net.Conn) net.Conn {
	switch c := c.(type) {
	case *net.TCPConn:
		counted := &tcpConn{TCPConn: c, from: from}
		enter(&counted.entry)
		return counted
	case *net.UnixConn:
		counted := &unixConn{UnixConn: c, from: from}
		enter(&counted.entry)
		return counted
	default:
		counted := &otherConn{Conn: c, from: from}
		enter(&counted.entry)
		return counted
	}
}

// RemoteAddr is never nil, though the kernel does not know it any more when the client has
// reset a connection that moves.
func (c *tcpConn) RemoteAddr() net.Addr {
	if addr := c.TCPConn.RemoteAddr(); addr != nil {
		return addr
	}
	return &net.TCPAddr{}
}

func (c *tcpConn) Close() error {
	defer c.from.Remove(&c.entry)
	return c.TCPConn.Close()
}

func (c *unixConn) Close() error {
	defer c.from.Remove(&c.entry)
	return c.UnixConn.Close()
}

func (c *otherConn) Close() error {
	defer c.from.Remove(&c.entry)
	return c.Conn.Close()
}
