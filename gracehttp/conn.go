package gracehttp

import (
	"crypto/tls"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/accept"
)

// bufferSize is the size of the buffer through which net/http reads requests.
// A Read between requests that asks for less has bytes of the next one there.
const bufferSize = 4096

var longAgo = time.Unix(1, 0)

// A conn follows one connection, so that it can be taken from net/http between
// two requests, and only then. It is the part that the connection types below
// have in common.
type conn struct {
	// While a request is under way nothing is looked at but what comes first: in a
	// tcpConn it shares a line of the processor's cache, of 64 bytes, with the pointer
	// before it and nothing else.
	raw     rawConn
	server  *server
	phase   atomic.Uint32 // the bits below
	mu      sync.Mutex    // guards the last group, and most changes of phase
	largest uint16        // for whoever reads: what a Read before the first request has asked for
	preface int8          // for whoever reads: how much of HTTP/2's first line was read, -1 if it is another

	entry accept.Entry

	deadline time.Time // for reads, as net/http wants it; unless fresh, only while idle
	since    time.Time // when it became idle during a drain
	http2    any       // what net/http speaks HTTP/2 on, or nil
	gone     bool      // moved or ended: Read returns io.EOF
	shared   bool      // offered and not taken: a copy may be on its way for long
	other    bool      // hijacked or HTTP/2
	lapses   bool      // lapse is to be called
	streams  bool      // HTTP/2: some are open
	parting  bool      // HTTP/2 over TLS: nothing is to be written but its GOAWAY
	overhead uint8     // of a TLS record
}

// What a connection's phase consists of. While it is 0 a request is under way on
// HTTP/1, and nobody kicks: what is read and the deadlines are net/http's alone. It
// changes under mu, except that a Read begins such a request and follow ends it.
const (
	idle   = 1 << iota // between requests: no byte of the next one has been read
	armed              // and net/http has set the deadline for that
	fresh              // no request has been read yet, or it is HTTP/2
	kicked             // the next, or waiting, Read must look whether to end
)

// is reports whether the phase has one of some bits.
func (c *conn) is(bits uint32) bool { return c.phase.Load()&bits != 0 }

// The connection types embed the concrete ones, so that net/http and handlers find
// all their methods: ReadFrom (sendfile), CloseWrite, SyscallConn, … Those of conn
// come first, since the others are a level deeper.

type tcpConn struct {
	tcpMethods
	conn
	_ [8]byte // a whole number of cache lines: several are allocated together
}

type unixConn struct {
	unixMethods
	conn
}

type (
	tcpMethods  struct{ *net.TCPConn }
	unixMethods struct{ *net.UnixConn }
)

// A rawConn is a *net.TCPConn, a *net.UnixConn, or the *os.File of a connection
// that was moved here and waits for its next request.
type rawConn interface {
	io.ReadWriteCloser
	syscall.Conn
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// wrap makes a connection ours. It is not in the book yet.
func (s *server) wrap(c net.Conn) (net.Conn, *conn) {
	switch c := c.(type) {
	case *net.TCPConn:
		w := s.newTCPConn()
		w.TCPConn = c
		w.conn.init(s, c)
		return w, &w.conn
	case *net.UnixConn:
		w := &unixConn{unixMethods: unixMethods{c}}
		w.conn.init(s, c)
		return w, &w.conn
	default:
		panic("gracehttp: a listener of package net accepted something else")
	}
}

// newTCPConn returns one of several that were allocated together: net/http needs
// few allocations for a connection, and this one would show.
func (s *server) newTCPConn() *tcpConn {
	s.mu.Lock()
	if len(s.spare) == 0 {
		s.spare = make([]tcpConn, 4)
	}
	w := &s.spare[0]
	s.spare = s.spare[1:]
	s.mu.Unlock()
	return w
}

func (c *conn) init(s *server, raw rawConn) {
	c.server, c.raw = s, raw
	c.phase.Store(idle | fresh)
	c.entry.Conn = c
}

// coreOf finds the conn in what net/http knows as the connection.
func coreOf(nc net.Conn) *conn {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	if t, ok := nc.(*tcpConn); ok {
		return &t.conn
	}
	if u, ok := nc.(*unixConn); ok {
		return &u.conn
	}
	return nil
}

// Read is Read for net/http. Between requests it may end the connection, that
// is return io.EOF, because it has been moved or has been idle for too long.
//
// This, Write, SetReadDeadline and follow are on the way of each request: they are kept
// short, and what is rare is in functions of its own.
func (c *conn) Read(b []byte) (int, error) {
	was := c.phase.Load()
	if was&(fresh|kicked) != 0 {
		return c.read(b)
	}
	n, err := c.raw.Read(b)
	if was == 0 || n > 0 && c.phase.CompareAndSwap(was, 0) {
		return n, err // of a request that is under way, or begins
	}
	if n == 0 && c.roused(err) {
		return c.read(b)
	}
	c.note(b[:n], len(b))
	return n, err
}

// read is Read where more is to be done.
func (c *conn) read(b []byte) (int, error) {
	for !c.is(kicked) || !c.look(b) {
		n, err := c.raw.Read(b)
		if n == 0 && c.roused(err) {
			continue
		}
		c.note(b[:n], len(b))
		return n, err
	}
	return 0, io.EOF
}

// roused reports whether a Read has ended because of a kick.
func (c *conn) roused(err error) bool {
	return c.is(kicked) && errors.Is(err, os.ErrDeadlineExceeded)
}

// note is called with what a Read has brought, and how much it had asked for.
func (c *conn) note(b []byte, asked int) {
	if len(b) == 0 {
		return
	}
	if c.is(idle) { // HTTP/2 may have become so meanwhile
		c.mu.Lock()
		c.begin()
		c.mu.Unlock()
	}
	if c.is(fresh) {
		c.largest = max(c.largest, uint16(min(asked, math.MaxUint16)))
	}
	if c.preface >= 0 {
		c.lookForPreface(b)
	}
}

// begin is called when a request begins: from then on nobody kicks. The caller
// holds c.mu.
func (c *conn) begin() {
	c.phase.And(^uint32(idle | armed))
	if c.is(kicked) && !c.gone && !c.handshaking() {
		c.unkick()
	}
}

// unkick gives the reader its own deadline back. The caller holds c.mu.
func (c *conn) unkick() {
	c.phase.And(^uint32(kicked))
	c.raw.SetReadDeadline(c.deadline)
}

// look is what kick asks for: it ends an idle connection if a drain wants that,
// and reports whether it has ended. The caller is the one that reads.
func (c *conn) look(b []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.is(kicked) && !c.gone {
		c.unkick()
		if !c.empty(b) {
			c.begin() // a request, or part of one, is in the buffer
		}
		if c.settle() {
			c.gone = true
			c.phase.Or(kicked) // so that each Read comes here
		}
	}
	return c.gone
}

// http2Preface begins an HTTP/2 connection without TLS (RFC 9113, section 3.4).
const http2Preface = "PRI * HTTP/2.0\r\n"

// lookForPreface recognizes HTTP/2 without TLS by a connection's first bytes.
func (c *conn) lookForPreface(b []byte) {
	rest := http2Preface[c.preface:]
	n := min(len(b), len(rest))
	if c.server.tls || string(b[:n]) != rest[:n] {
		c.preface = -1
		return
	}
	c.preface += int8(n)
	if int(c.preface) == len(http2Preface) {
		c.preface = -1
		c.mu.Lock()
		c.toHTTP2(c.raw)
		c.mu.Unlock()
	}
}

// empty reports whether net/http's buffer is, by what it asks for.
func (c *conn) empty(b []byte) bool {
	if c.server.tls || c.is(fresh) {
		return true
	}
	return len(b) >= bufferSize && len(b) >= int(c.largest)
}

// awaitInput waits until something can be read, and reports whether it can; if
// not, the connection has ended. After a body some clients send a line break, which
// net/http skips where it has answered that request itself (RFC 9112, section 2.2): so
// awaitInput does, for the same four bytes.
func (c *conn) awaitInput() bool {
	raw, err := c.raw.SyscallConn()
	if err != nil {
		return false
	}
	for skipped := 0; ; {
		if c.is(kicked) && c.look(nil) {
			return false
		}
		readable, err := waitReadable(raw)
		if c.is(kicked) && errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if readable && skipped < 4 && skipLineBreak(raw) {
			skipped++
			continue
		}
		return readable
	}
}

// parked reports whether the connection was moved here and waits for its next
// request.
func (c *conn) parked() bool {
	_, ok := c.raw.(*os.File)
	return ok
}

// kick makes an idle connection's Read look whether to end it, and reports whether
// it is one.
func (c *conn) kick() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.phase.Load()
	if c.other || was&kicked != 0 || was&idle == 0 && !c.handshaking() {
		return false
	}
	if !c.phase.CompareAndSwap(was, was|kicked) {
		return false // a request begins just now
	}
	c.raw.SetReadDeadline(longAgo)
	return true
}

// lapse makes the connection look whether to end, when it has been idle for the
// grace time.
func (c *conn) lapse() {
	c.mu.Lock()
	left := time.Until(c.since.Add(c.server.app.idleGrace))
	c.lapses = left > 0
	c.mu.Unlock()
	if left > 0 {
		time.AfterFunc(left, c.lapse)
	} else {
		c.kick()
	}
}

// handshaking reports whether a TLS handshake has begun, and no request yet. The
// caller holds c.mu.
func (c *conn) handshaking() bool {
	return c.server.tls && c.is(fresh) && !c.is(idle) && !c.other
}

// settle lets a drain decide about an idle connection, and reports whether it is
// to end. The caller holds c.mu, which is released meanwhile.
func (c *conn) settle() bool {
	d := c.server.draining.Load()
	if d == nil || c.other || !c.is(idle) && !c.handshaking() {
		return false
	}
	if d.moves() {
		c.mu.Unlock()
		b := d.mover.offer(c)
		c.mu.Lock()
		if b != nil {
			c.shared = !b.taken
			if b.taken {
				return true
			}
		}
		if d.moves() {
			return false // it is asked again, or the drain was called off
		}
	}
	if time.Now().Before(d.patience(c)) {
		return false
	}
	raw, err := c.raw.SyscallConn()
	return err != nil || !hasInput(raw)
}

// follow is the ConnState hook: it tells where in its life a connection is.
func follow(nc net.Conn, state http.ConnState) {
	if t, ok := nc.(*tcpConn); ok && t.conn.phase.Load() == 0 {
		if state == http.StateActive {
			return // a Read has seen that
		}
		if state == http.StateIdle {
			t.conn.phase.Store(idle)
			if t.conn.server.draining.Load() == nil {
				return
			}
		}
	}
	if state == http.StateNew || state == http.StateClosed {
		return
	}
	if c := coreOf(nc); c != nil {
		c.mu.Lock()
		c.setState(nc, state)
		c.mu.Unlock()
	}
}

// setState is what follow does where it is not done at once. The caller holds c.mu.
func (c *conn) setState(nc net.Conn, state http.ConnState) {
	switch state {
	case http.StateActive:
		if t, ok := nc.(*tls.Conn); ok && c.is(fresh) && !c.other {
			if state := t.ConnectionState(); state.NegotiatedProtocol == "h2" {
				c.toHTTP2(t)
				c.overhead = tlsOverhead(state)
			}
		}
		if c.http2 == nil { // else each state is to come here
			c.phase.And(^uint32(fresh))
		}
		c.begin()
		c.streams = true
	case http.StateIdle:
		c.phase.Or(idle)
		c.streams = false
		if d := c.server.draining.Load(); d != nil && !c.other {
			c.idleInDrain(d)
		}
	case http.StateHijacked:
		c.phase.And(^uint32(idle))
		c.leave()
	}
}

// idleInDrain is called when the connection becomes idle during a drain. The caller
// holds c.mu.
func (c *conn) idleInDrain(d *drain) {
	if d.moves() || d.stop || d.late() {
		c.phase.Or(kicked)
		return
	}
	c.since = time.Now()
	if !c.lapses {
		c.lapses = true
		time.AfterFunc(c.server.app.idleGrace, c.lapse)
	}
}

// toHTTP2 counts the connection among those that speak HTTP/2, which net/http does on
// nc. The caller holds c.mu.
func (c *conn) toHTTP2(nc any) {
	if c.other {
		return // it was closed meanwhile
	}
	c.http2 = nc
	c.server.http2.Add(1) // before it leaves: a drain waits for one kind, then for the other
	c.leave()
}

// leave counts the connection out of those that speak HTTP/1. The caller holds
// c.mu.
func (c *conn) leave() {
	if !c.other {
		c.other = true
		c.server.left()
	}
}

// Close closes the connection, and strikes it out of the book.
func (c *conn) Close() error {
	c.mu.Lock()
	shared := c.shared
	c.mu.Unlock()
	if shared {
		shutdown(c.raw) // or the client would not notice
	}
	err := c.raw.Close()
	if c.server.gate.Remove(&c.entry) {
		c.mu.Lock()
		c.leave()
		if c.http2 != nil && c.server.http2.Add(-1) == 0 {
			c.server.change()
		}
		c.mu.Unlock()
	}
	return err
}

// Write is Write for net/http.
func (c *conn) Write(b []byte) (int, error) {
	if c.server.draining.Load() != nil {
		return c.writeInDrain(b)
	}
	return c.raw.Write(b)
}

// SetDeadline sets both deadlines.
func (c *conn) SetDeadline(t time.Time) error {
	if err := c.raw.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.SetReadDeadline(t)
}

// SetReadDeadline is SetReadDeadline for net/http: what it sets while the connection
// is idle is noted.
func (c *conn) SetReadDeadline(t time.Time) error {
	if c.phase.Load() == 0 {
		return c.raw.SetReadDeadline(t)
	}
	return c.setReadDeadline(t)
}

func (c *conn) setReadDeadline(t time.Time) (err error) {
	c.mu.Lock()
	c.deadline = t
	if c.phase.CompareAndSwap(idle, idle|armed) || c.arm() {
		err = c.raw.SetReadDeadline(t)
	}
	c.mu.Unlock()
	return err
}

// arm looks at what a deadline tells, and reports whether it is to be set at once; if
// not, look does so. After a response net/http sets the deadline for being idle; the
// next time, the next request has begun: it may have been in the buffer, so that no
// Read has shown it. The caller holds c.mu.
func (c *conn) arm() bool {
	switch was := c.phase.Load(); was & (idle | armed | fresh) {
	case idle | armed:
		c.begin()
	case idle:
		c.phase.CompareAndSwap(was, was|armed) // unless somebody else reads
	}
	return !c.is(kicked) || !c.is(idle)
}
