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
	mu      sync.Mutex  // guards armed and the last group, and lets kicked become true only while idle
	idle    atomic.Bool // between requests: no byte of the next one has been read
	fresh   atomic.Bool // no request has been read yet, or it is HTTP/2
	kicked  atomic.Bool // the next, or waiting, Read must look whether to end
	largest uint16      // for whoever reads: what a Read between requests has asked for
	preface int8        // for whoever reads: how much of HTTP/2's first line was read, -1 if it is another
	armed   bool        // net/http has set the deadline for being idle

	entry accept.Entry

	deadline time.Time // for reads, as net/http wants it; unless fresh, only while idle
	since    time.Time // when it became idle during a drain
	http2    net.Conn  // what net/http speaks HTTP/2 on, or nil
	gone     bool      // moved or ended: Read returns io.EOF
	shared   bool      // offered and not taken: a copy may be on its way for long
	other    bool      // hijacked or HTTP/2
	lapses   bool      // lapse is to be called
	streams  bool      // HTTP/2: some are open
	parting  bool      // HTTP/2 over TLS: nothing is to be written but its GOAWAY
	overhead uint8     // of a TLS record
}

// A rawConn is a *net.TCPConn, a *net.UnixConn, or the *os.File of a connection
// that was moved here and waits for its next request.
type rawConn interface {
	io.ReadCloser
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
		w := &unixConn{UnixConn: c}
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
	defer s.mu.Unlock()
	if len(s.spare) == 0 {
		s.spare = make([]tcpConn, 4)
	}
	w := &s.spare[0]
	s.spare = s.spare[1:]
	return w
}

func (c *conn) init(s *server, raw rawConn) {
	c.server, c.raw = s, raw
	c.fresh.Store(true)
	c.idle.Store(true)
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

// read is Read for net/http. Between requests it may end the connection, that
// is return io.EOF, because it has been moved or has been idle for too long.
func (c *conn) read(b []byte) (int, error) {
	for {
		if c.kicked.Load() && c.look(b) {
			return 0, io.EOF
		}
		if c.idle.Load() {
			c.largest = max(c.largest, uint16(min(len(b), math.MaxUint16)))
		}
		n, err := c.raw.Read(b)
		if n > 0 {
			if c.idle.Load() { // HTTP/2 may have become so meanwhile
				c.mu.Lock()
				c.begin()
				c.mu.Unlock()
			}
			if c.preface >= 0 {
				c.lookForPreface(b[:n])
			}
		}
		if n == 0 && c.kicked.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		return n, err
	}
}

// begin is called when a request begins: from then on nobody kicks. The caller
// holds c.mu.
func (c *conn) begin() {
	c.idle.Store(false)
	if c.kicked.Load() && !c.gone && !c.handshaking() {
		c.unkick()
	}
}

// unkick gives the reader its own deadline back. The caller holds c.mu.
func (c *conn) unkick() {
	c.kicked.Store(false)
	c.raw.SetReadDeadline(c.deadline)
}

// look is what kick asks for: it ends an idle connection if a drain wants that,
// and reports whether it has ended. The caller is the one that reads.
func (c *conn) look(b []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.kicked.Load() && !c.gone {
		c.unkick()
		if !c.empty(b) {
			c.idle.Store(false) // a request, or part of one, is in the buffer
		}
		if c.settle() {
			c.gone = true
			c.kicked.Store(true) // so that each Read comes here
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
		c.leave()
		c.http2, _ = c.raw.(net.Conn)
		c.mu.Unlock()
	}
}

// empty reports whether net/http's buffer is, by what it asks for.
func (c *conn) empty(b []byte) bool {
	if c.server.tls || c.fresh.Load() {
		return true
	}
	return len(b) >= bufferSize && len(b) >= int(c.largest)
}

// awaitInput waits until something can be read, and reports whether it can; if
// not, the connection has ended.
func (c *conn) awaitInput() bool {
	raw, err := c.raw.SyscallConn()
	if err != nil {
		return false
	}
	for {
		if c.kicked.Load() && c.look(nil) {
			return false
		}
		readable, err := waitReadable(raw)
		if c.kicked.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
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

// kick makes an idle connection's Read look whether to end it.
func (c *conn) kick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.other && !c.kicked.Load() && (c.idle.Load() || c.handshaking()) {
		c.kicked.Store(true)
		c.raw.SetReadDeadline(longAgo)
	}
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
	return c.server.tls && c.fresh.Load() && !c.idle.Load() && !c.other
}

// settle lets a drain decide about an idle connection, and reports whether it is
// to end. The caller holds c.mu, which is released meanwhile.
func (c *conn) settle() bool {
	d := c.server.draining.Load()
	if d == nil || c.other || !c.idle.Load() && !c.handshaking() {
		return false
	}
	if d.moves() {
		c.mu.Unlock()
		taken := d.mover.offer(c)
		c.mu.Lock()
		c.shared = !taken
		if taken {
			return true
		}
		if d.moves() {
			return false // the drain was called off
		}
	}
	if time.Now().Before(d.patience(c)) {
		return false
	}
	raw, err := c.raw.SyscallConn()
	return err != nil || !hasInput(raw)
}

// setState follows net/http.
func (c *conn) setState(nc net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateActive:
		if t, ok := nc.(*tls.Conn); ok && c.fresh.Load() && !c.other {
			if state := t.ConnectionState(); state.NegotiatedProtocol == "h2" {
				c.leave()
				c.http2 = t
				c.overhead = tlsOverhead(state)
			}
		}
		c.fresh.Store(c.http2 != nil) // so that each state of HTTP/2 comes here
		c.begin()
		c.streams = true
	case http.StateIdle:
		c.idle.Store(true)
		c.streams = false
		c.armed = false
		if d := c.server.draining.Load(); d != nil && !c.other {
			c.idleInDrain(d)
		}
	case http.StateHijacked:
		c.idle.Store(false)
		c.leave()
	}
}

// idleInDrain is called when the connection becomes idle during a drain. The caller
// holds c.mu.
func (c *conn) idleInDrain(d *drain) {
	if d.moves() || d.stop {
		c.kicked.Store(true)
		return
	}
	c.since = time.Now()
	if !c.lapses {
		c.lapses = true
		time.AfterFunc(c.server.app.idleGrace, c.lapse)
	}
}

// leave counts the connection out of those that speak HTTP/1. The caller holds
// c.mu.
func (c *conn) leave() {
	if !c.other {
		c.other = true
		c.server.left()
	}
}

func (c *conn) close() error {
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
		if c.http2 != nil {
			c.server.change()
		}
		c.mu.Unlock()
	}
	return err
}

// busy reports whether a request is under way on HTTP/1. Nobody kicks then: what is
// read and the deadlines are net/http's alone.
func (c *conn) busy() bool { return !c.idle.Load() && !c.fresh.Load() }

// setReadDeadline is SetReadDeadline where it is not busy. After a response net/http
// sets the deadline for being idle; the next time, the next request has begun: it may
// have been in the buffer, so that no Read has shown it.
func (c *conn) setReadDeadline(t time.Time) (err error) {
	c.mu.Lock()
	c.deadline = t
	if c.idle.Load() && !c.fresh.Load() {
		if c.armed {
			c.begin()
		}
		c.armed = true
	}
	if !c.kicked.Load() || !c.idle.Load() { // else look sets it
		err = c.raw.SetReadDeadline(t)
	}
	c.mu.Unlock()
	return err
}

// The connection types embed the concrete ones, so that net/http and handlers
// find all their methods: ReadFrom (sendfile), CloseWrite, SyscallConn, … While a
// request is under way, and nothing is restarted, they add nothing to those.

type tcpConn struct {
	*net.TCPConn
	conn conn // this makes it a whole number of cache lines: several are allocated together
}

func (c *tcpConn) Read(b []byte) (int, error) {
	if c.conn.busy() {
		return c.conn.raw.Read(b)
	}
	return c.conn.read(b)
}

func (c *tcpConn) Write(b []byte) (int, error) {
	if c.conn.server.draining.Load() == nil {
		return c.TCPConn.Write(b)
	}
	return c.conn.write(c.TCPConn, b)
}

func (c *tcpConn) Close() error { return c.conn.close() }

func (c *tcpConn) SetReadDeadline(t time.Time) error {
	if c.conn.busy() {
		return c.conn.raw.SetReadDeadline(t)
	}
	return c.conn.setReadDeadline(t)
}

func (c *tcpConn) SetDeadline(t time.Time) error {
	if err := c.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.SetReadDeadline(t)
}

type unixConn struct {
	*net.UnixConn
	conn conn
}

func (c *unixConn) Read(b []byte) (int, error) {
	if c.conn.busy() {
		return c.conn.raw.Read(b)
	}
	return c.conn.read(b)
}

func (c *unixConn) Write(b []byte) (int, error) {
	if c.conn.server.draining.Load() == nil {
		return c.UnixConn.Write(b)
	}
	return c.conn.write(c.UnixConn, b)
}

func (c *unixConn) Close() error { return c.conn.close() }

func (c *unixConn) SetReadDeadline(t time.Time) error {
	if c.conn.busy() {
		return c.conn.raw.SetReadDeadline(t)
	}
	return c.conn.setReadDeadline(t)
}

func (c *unixConn) SetDeadline(t time.Time) error {
	if err := c.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.SetReadDeadline(t)
}
