package gracehttp

import (
	"cmp"
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
	"github.com/facebookgo/grace/internal/handoff"
)

// bufferSize is the size of the buffer through which net/http reads requests.
// A Read between requests that asks for less has bytes of the next one there.
const bufferSize = 4096

// lingerTimeout bounds how long a client that goes on sending is read from after the
// last answer on its connection (RFC 9112, section 9.6).
const lingerTimeout = time.Second

var longAgo = time.Unix(1, 0)

// A conn follows one connection through its states, so that a drain can take it from
// net/http between two requests, and only then. It is the part that the connection
// types below have in common.
//
//	state       bits                  in a drain
//	new         idle, first           moves; or ends when it was idle for long enough
//	handshake   first                 TLS has begun, and no request: the same, without moving
//	active      none                  goes on; its answer may say that it is the last
//	idle        idle, armed, waiting  moves; or ends when it was idle for long enough
//	HTTP/2      first                 goes on, until net/http's Shutdown
//	hijacked    none                  goes on; at a stop it is closed if no hook could end it
//	ended       woken                 each Read returns io.EOF, so that net/http closes it
//
// What happens in the new, handshake and idle states is decided by decide, and nowhere
// else, in the goroutine that reads: a drain wakes it, or lets the time at which it is
// to decide anew end its Read.
type conn struct {
	// While a request is under way nothing is looked at but what comes first: in a
	// tcpConn it shares a line of the processor's cache, of 64 bytes, with the pointer
	// before it and nothing else.
	raw     rawConn
	server  *server
	state   atomic.Uint32 // the bits below
	mu      sync.Mutex    // guards the last group, and most changes of state
	largest uint16        // for whoever reads: what a Read before the first request has asked for
	preface int8          // for whoever reads: how much of HTTP/2's first line was read, -1 if it is another
	missing int8          // for whoever reads: how many bytes until limit ends; -1: a whole header

	entry accept.Entry

	deadline time.Time // for reads, as net/http wants it; unless first, only while idle
	limit    time.Time // for the first request on a connection that was moved here, beside deadline
	since    time.Time // when it began to wait for its first request, here or where it was moved from; or became idle during a drain
	pace     *pace     // the last that has given it its place
	place    uint32
	kind     accept.Kind
	used     bool // it was moved here after a request
	wrapped  bool // it is of a wrapper's own type
	closing  bool // an answer says that it is the last
	gone     bool // moved or ended: Read returns io.EOF
	coming   bool // about to be offered
	shared   bool // offered and not taken: a copy may be on its way for long
}

// What a connection's state consists of. While it is 0 a request is under way on
// HTTP/1, and nobody wakes the reader: what is read and the deadlines are net/http's
// alone. It changes under mu, except that a Read begins such a request and follow ends it.
const (
	idle    = 1 << iota // between requests: no byte of the next one has been read
	armed               // and net/http has set the deadline for that
	waiting             // and a Read waits for it
	first               // no request has been read yet, or it is HTTP/2
	woken               // the Read that waits, or the next one, must decide whether to end
	timed               // it must when its deadline is over, which is a drain's
)

// is reports whether the state has one of some bits.
func (c *conn) is(bits uint32) bool { return c.state.Load()&bits != 0 }

// The connection types embed the concrete ones, so that net/http and handlers find
// all their methods: Write, ReadFrom (sendfile), CloseWrite, SyscallConn, … Those of
// conn come first, since the others are a level deeper.

type tcpConn struct {
	tcpMethods
	conn // a whole number of cache lines
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

// wrap makes a connection ours. It is not listed yet.
func (s *server) wrap(c net.Conn) (net.Conn, *conn) {
	switch c := c.(type) {
	case *net.TCPConn:
		w := &tcpConn{tcpMethods: tcpMethods{c}}
		w.conn.init(s, c)
		return w, &w.conn
	case *net.UnixConn:
		w := &unixConn{unixMethods: unixMethods{c}}
		w.conn.init(s, c)
		return w, &w.conn
	default:
		w := &wrappedConn{wrappedMethods: wrappedMethods{c}}
		w.conn.init(s, wrappedRaw{w.wrappedMethods})
		w.conn.wrapped = true
		return w, &w.conn
	}
}

func (c *conn) init(s *server, raw rawConn) {
	c.server, c.raw, c.since = s, raw, time.Now()
	c.state.Store(idle | first)
	c.entry.Conn = c
}

// coreOf finds the conn in what net/http knows as the connection.
func coreOf(nc net.Conn) *conn {
	if t, ok := nc.(*tls.Conn); ok {
		if c, ok := passed.Load(t); ok {
			return c.(*conn)
		}
		nc = t.NetConn()
	}
	if ours, ok := nc.(interface{ core() *conn }); ok {
		return ours.core()
	}
	return nil
}

func (c *conn) core() *conn { return c }

// A connKey is the key by which the contexts of requests have the conn.
type connKey struct{}

// connOf returns the connection on which a request has come, or nil.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}

// decide says what becomes of a connection between requests: it ends, or stays until a
// time at which this is to be asked again, or for as long as nothing changes if that is
// zero. The caller is the one that reads, and holds c.mu, which is released meanwhile.
func (c *conn) decide() (until time.Time, end bool) {
	d := c.server.draining.Load()
	if d == nil || d.lameDuck || !c.mayEnd() {
		return until, false
	}
	if d.moves() && !c.wrapped {
		c.coming = true
		c.mu.Unlock()
		offered, taken := d.mover.offer(c)
		c.mu.Lock()
		c.coming = false
		if offered {
			c.shared = !taken
		}
		if taken {
			c.server.note(accept.Count{Moved: 1})
			return until, true
		}
		if d.moves() {
			return until, false // it is asked again, or the drain was called off
		}
	}
	if until = d.expiry(c); time.Now().Before(until) {
		return until, false
	}
	if c.hasInput() {
		return time.Time{}, false // the next request is here
	}
	c.server.note(accept.Count{Idle: 1})
	return until, true
}

// Read is Read for net/http. Between requests it may end the connection, that
// is return io.EOF, because it has been moved or has been idle for too long.
//
// This, SetReadDeadline and follow are on the way of each request: they are kept
// short, and what is rare is in functions of its own.
func (c *conn) Read(b []byte) (int, error) {
	was := c.state.Load()
	if was == 0 {
		return c.raw.Read(b) // of a request that is under way
	}
	if was&(first|woken|timed) != 0 || !c.state.CompareAndSwap(was, was|waiting) {
		return c.read(b)
	}
	n, err := c.raw.Read(b)
	if n > 0 && c.state.CompareAndSwap(was|waiting, 0) {
		return n, err // a request begins
	}
	if n == 0 && c.interrupted(err) {
		return c.read(b)
	}
	c.note(b[:n], len(b))
	return n, err
}

// read is Read where more is to be done.
func (c *conn) read(b []byte) (int, error) {
	for !c.is(woken|timed) || !c.look(b) {
		if c.is(idle) {
			c.state.Or(waiting)
		}
		n, err := c.raw.Read(b)
		if n == 0 && c.interrupted(err) {
			continue
		}
		c.note(b[:n], len(b))
		return n, err
	}
	return 0, io.EOF
}

// interrupted reports whether a Read has ended in order to look.
func (c *conn) interrupted(err error) bool {
	return c.is(woken|timed) && errors.Is(err, os.ErrDeadlineExceeded)
}

// note is called with what a Read has brought, and how much it had asked for.
func (c *conn) note(b []byte, asked int) {
	if len(b) == 0 {
		c.state.And(^uint32(waiting))
		return
	}
	if c.is(idle) { // HTTP/2 may have become so meanwhile
		c.mu.Lock()
		c.begin()
		c.mu.Unlock()
	}
	if c.is(first) {
		c.largest = max(c.largest, uint16(min(asked, math.MaxUint16)))
	}
	if c.preface >= 0 {
		c.lookForPreface(b)
	}
	if c.missing > 0 {
		if c.missing -= int8(min(len(b), int(c.missing))); c.missing == 0 {
			c.mu.Lock()
			c.endLimit()
			c.mu.Unlock()
		}
	}
}

// begin is called when a request begins: from then on nobody wakes the reader. The
// caller holds c.mu.
func (c *conn) begin() {
	c.state.And(^uint32(idle | armed | waiting))
	if c.is(woken|timed) && !c.gone && !c.handshaking() {
		c.state.And(^uint32(woken | timed))
		c.setTimer(time.Time{})
	}
}

// setTimer sets the deadline for reads: net/http's, or until if that comes before it.
// The caller holds c.mu.
func (c *conn) setTimer(until time.Time) {
	deadline := accept.Earlier(c.deadline, c.limit)
	if !until.IsZero() && (deadline.IsZero() || until.Before(deadline)) {
		deadline = until
		c.state.Or(timed)
	}
	if !c.is(woken) {
		c.raw.SetReadDeadline(deadline)
	}
}

// look lets an idle connection decide, and reports whether it has ended. The caller is
// the one that reads.
func (c *conn) look(b []byte) (ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.is(woken|timed) && !c.gone {
		c.state.And(^uint32(woken | timed))
		if !c.empty(b) {
			c.begin() // a request, or part of one, is in the buffer
		}
		until, end := c.decide()
		if end {
			c.gone = true
			c.state.Or(woken) // so that each Read comes here
			break
		}
		if c.setTimer(until); !c.is(woken) {
			break
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
		c.become(accept.HTTP2)
		c.mu.Unlock()
	}
}

// empty reports whether net/http's buffer is, by what it asks for.
func (c *conn) empty(b []byte) bool {
	if c.server.tls || c.is(first) {
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
		if c.is(woken|timed) && c.look(nil) {
			return false
		}
		next, err := waitReadable(raw)
		switch {
		case c.interrupted(err):
		case skipped < 4 && (string(next) == "\r" || string(next) == "\n"):
			skip(raw)
			skipped++
		default:
			return len(next) > 0
		}
	}
}

// wake makes an idle connection's reader decide whether to end it, and reports whether
// it is one that was not about to.
func (c *conn) wake() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	bit := uint32(woken)
	if c.wrapped {
		bit = timed
	}
	for {
		was := c.state.Load()
		if was&woken != 0 || !c.mayEnd() {
			return false
		}
		if c.state.CompareAndSwap(was, was|bit) {
			break
		} // else a Read begins just now to wait, or a request
	}
	if c.wrapped {
		// It decides when its time is over, not before: the wrapper may be reading what
		// comes before the first request, and not bear to be interrupted.
		var until time.Time
		if d := c.server.draining.Load(); d != nil && !d.lameDuck {
			until = d.expiry(c)
		}
		c.setTimer(until)
		return false
	}
	c.raw.SetReadDeadline(longAgo)
	return !c.coming
}

// mayEnd reports whether no request is under way on HTTP/1. The caller holds c.mu.
func (c *conn) mayEnd() bool {
	return c.kind == accept.HTTP1 && (c.is(idle) || c.handshaking())
}

// handshaking reports whether a TLS handshake has begun, and no request yet. The
// caller holds c.mu.
func (c *conn) handshaking() bool {
	return c.server.tls && c.is(first) && !c.is(idle) && c.kind == accept.HTTP1
}

// waits returns for how long the connection has been waiting for its next request, by
// the deadline that net/http has set for that.
func (c *conn) waits() handoff.Waiting {
	c.mu.Lock()
	defer c.mu.Unlock()
	began := time.Now()
	w := handoff.Waiting{First: c.is(first) && !c.used}
	switch timeout := cmp.Or(c.server.user.IdleTimeout, c.server.user.ReadTimeout); {
	case c.is(first):
		began = c.since
	case timeout > 0 && !c.deadline.IsZero():
		began = c.deadline.Add(-timeout)
	}
	w.For = max(0, time.Since(began).Milliseconds())
	return w
}

// follow is the ConnState hook: it tells where in its life a connection is.
func follow(nc net.Conn, state http.ConnState) {
	if state == http.StateClosed {
		if t, ok := nc.(*tls.Conn); ok {
			closePassed(t)
		}
		return
	}
	c := coreOf(nc)
	if c == nil || state == http.StateNew {
		return
	}
	if c.state.Load() == 0 {
		if state == http.StateActive {
			return // a Read has seen that
		}
		if state == http.StateIdle {
			c.state.Store(idle)
			if c.server.draining.Load() == nil {
				return
			}
		}
	}
	c.mu.Lock()
	c.setState(nc, state)
	c.mu.Unlock()
}

// setState is what follow does where it is not done at once. The caller holds c.mu.
func (c *conn) setState(nc net.Conn, state http.ConnState) {
	switch state {
	case http.StateActive:
		if t, ok := nc.(*tls.Conn); ok && c.is(first) && t.ConnectionState().NegotiatedProtocol == "h2" {
			c.become(accept.HTTP2)
		}
		if c.kind != accept.HTTP2 { // else each state is to come here
			c.state.And(^uint32(first))
		}
		c.begin()
		c.endLimit()
	case http.StateIdle:
		c.state.Or(idle)
		if c.server.draining.Load() != nil && c.kind == accept.HTTP1 {
			c.since = time.Now()
			c.state.Or(woken) // the next Read decides
		}
	case http.StateHijacked:
		c.state.And(^uint32(idle | armed | waiting))
		c.become(accept.Hijacked)
	}
}

// endLimit leaves the deadline to net/http. The caller holds c.mu.
func (c *conn) endLimit() {
	if !c.limit.IsZero() {
		c.limit = time.Time{}
		c.raw.SetReadDeadline(c.deadline)
	}
}

// become notes what the connection speaks from now on: of those kinds, none comes after a
// later one. The caller holds c.mu.
func (c *conn) become(k accept.Kind) {
	if c.kind < k {
		c.kind = k
		c.server.listener.SetKind(&c.entry, k)
		c.expireHijacked()
	}
}

// expireHijacked ends a hijacked connection, whose owner is not told of the stop, after
// its grace. The caller holds c.mu.
func (c *conn) expireHijacked() {
	if d := c.server.draining.Load(); c.kind == accept.Hijacked && d != nil && d.closesHijacked {
		time.AfterFunc(d.hijackGrace, func() { c.raw.Close() }) // its owner sees that, and closes it
	}
}

// Close ends the connection, in a drain when its last answer has arrived.
func (c *conn) Close() error {
	d := c.server.draining.Load()
	c.mu.Lock()
	shared := c.shared
	open := d != nil && c.kind == accept.HTTP1 && !c.gone
	c.mu.Unlock()
	if open && c.is(waiting) && c.server.closedByProgram() {
		return nil // the drain will end it
	}
	switch {
	case shared:
		shutdown(c.raw) // or the client would not notice
	case open && c.inExchange():
		go func() { // http.Server.Close would wait for one client after the other
			c.linger()
			c.end()
		}()
		return nil
	}
	return c.end()
}

// end closes the connection, and takes it off the list.
func (c *conn) end() error {
	err := c.raw.Close()
	c.server.listener.Remove(&c.entry)
	c.mu.Lock()
	c.kind = accept.Hijacked // nothing is to be decided any more
	c.mu.Unlock()
	return err
}

// cut closes the connection without waiting for anything. net/http takes it off the list.
func (c *conn) cut() {
	c.mu.Lock()
	shared := c.shared
	c.mu.Unlock()
	if shared {
		shutdown(c.raw) // or the client would not notice
	}
	c.raw.Close()
}

// inExchange reports whether closing the connection now could reset it before the client
// has its last answer: it has sent more, or may do so while that is on its way.
func (c *conn) inExchange() bool {
	raw, err := c.raw.SyscallConn()
	_, tcp := c.raw.(*net.TCPConn)
	return err == nil && (hasInput(raw) || tcp && hasOutput(raw))
}

func (c *conn) hasInput() bool {
	raw, err := c.raw.SyscallConn()
	return err == nil && hasInput(raw)
}

// linger lets the last answer arrive: input that is unread, or comes after the close,
// resets the connection, and what the client has not received yet is lost. It reads what
// the client sends until that ends too (RFC 9112, section 9.6).
func (c *conn) linger() {
	if w, ok := c.raw.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		c.raw.SetReadDeadline(time.Now().Add(lingerTimeout))
		io.Copy(io.Discard, c.raw)
	}
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
	if c.state.Load() == 0 {
		return c.raw.SetReadDeadline(t)
	}
	return c.setReadDeadline(t)
}

func (c *conn) setReadDeadline(t time.Time) (err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if c.state.CompareAndSwap(idle, idle|armed) {
		return c.raw.SetReadDeadline(t)
	}
	switch was := c.state.Load(); was & (idle | armed | waiting | first) {
	case idle | armed:
		// After a response net/http sets the deadline for being idle; the next time,
		// the next request has begun: it may have been in the buffer, so that no Read
		// has shown it. While a Read waits, it is the program that sets one.
		c.begin()
	case idle:
		c.state.CompareAndSwap(was, was|armed) // unless somebody else reads
	}
	switch {
	case c.is(idle) && c.is(woken):
		return nil // look does it
	case c.is(idle) && c.is(timed):
		c.state.Or(woken) // it may be earlier than what the drain has set
		return c.raw.SetReadDeadline(longAgo)
	}
	return c.raw.SetReadDeadline(accept.Earlier(t, c.limit))
}
