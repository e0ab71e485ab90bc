package gracehttp

import (
	"bytes"
	"crypto/tls"
)

// net/http ends an HTTP/2 connection by a GOAWAY frame, and closes it a second
// later: if it did so at once, and something of the client's came in between, the
// client might never see the frame. It is enough to end our half: a client that
// has read all of it closes the other, and net/http then does the same.

// partHTTP2 finds the HTTP/2 connections over TLS that are about to write nothing
// but their GOAWAY: no stream is open on them, and nothing was read since.
func (s *server) partHTTP2() {
	if h2 := s.user.HTTP2; h2 != nil && h2.SendPingTimeout > 0 {
		return // it may write a PING of its own
	}
	for _, e := range s.gate.Entries() {
		c := e.Conn.(*conn)
		c.mu.Lock()
		c.parting = c.http2 != nil && c.is(idle)
		c.mu.Unlock()
	}
}

// writeInDrain is Write during a drain. On HTTP/2 without streams, GOAWAY is the last
// that net/http writes.
func (c *conn) writeInDrain(b []byte) (int, error) {
	last := c.goingAway(b)
	n, err := c.raw.Write(b)
	if last && err == nil {
		go c.closeWrite() // not here: TLS holds a lock that it needs
	}
	return n, err
}

// goingAway reports whether what is about to be written ends with a GOAWAY frame,
// and nothing more will be. On TLS only its size can be seen, which the answer to a
// PING has too: so not if something was read meanwhile. Then net/http closes the
// connection in its own time.
func (c *conn) goingAway(b []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.http2 == nil || c.streams {
		return false
	}
	if c.server.tls {
		return c.parting && c.is(idle) && len(b) == goAwaySize+int(c.overhead)
	}
	return len(b) >= goAwaySize && bytes.HasPrefix(b[len(b)-goAwaySize:], []byte(goAwayHeader))
}

// goAwayHeader begins a GOAWAY frame without debug data: see RFC 9113, section 6.8.
const (
	goAwayHeader = "\x00\x00\x08\x07\x00\x00\x00\x00\x00"
	goAwaySize   = len(goAwayHeader) + 8
)

// tlsOverhead returns what TLS adds to each record, with the AEAD cipher suites
// that HTTP/2 allows (RFC 8446, RFC 7905, RFC 5288).
func tlsOverhead(state tls.ConnectionState) uint8 {
	const header, tag = 5, 16
	switch {
	case state.Version == tls.VersionTLS13:
		return header + 1 + tag
	case state.CipherSuite == tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		state.CipherSuite == tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:
		return header + tag
	default:
		return header + 8 + tag // AES-GCM
	}
}

// closeWrite tells the client that nothing more will come.
func (c *conn) closeWrite() {
	c.mu.Lock()
	nc := c.http2
	c.mu.Unlock()
	if t, ok := nc.(*tls.Conn); ok {
		t.CloseWrite()
	}
	if w, ok := c.raw.(interface{ CloseWrite() error }); ok {
		w.CloseWrite()
	}
}
