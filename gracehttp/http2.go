package gracehttp

import (
	"bytes"
	"crypto/tls"
	"net"
	"slices"
)

// net/http ends an HTTP/2 connection by a GOAWAY frame, and closes it a second
// later: if it did so at once, and something of the client's came in between, the
// client might never see the frame. It is enough to end our half: a client that
// has read all of it closes the other, and net/http then does the same.

// partHTTP2 finds the HTTP/2 connections over TLS that are about to write nothing
// but their GOAWAY: no stream is open on them, and nothing was read since.
func (s *server) partHTTP2() {
	for _, e := range s.gate.Entries() {
		c := e.Conn.(*conn)
		c.mu.Lock()
		c.parting = c.http2 != nil && c.idle.Load()
		c.mu.Unlock()
	}
}

// write is Write for net/http, to raw. On HTTP/2 without streams, GOAWAY is the
// last that it writes.
func (c *conn) write(raw net.Conn, b []byte) (int, error) {
	n, err := raw.Write(b)
	if err == nil && c.server.draining.Load() != nil {
		c.mu.Lock()
		if c.http2 != nil && !c.streams && c.goingAway(b) {
			go closeWrite(c.http2, raw) // not here: TLS holds a lock that it needs
			c.http2 = nil
		}
		c.mu.Unlock()
	}
	return n, err
}

// goAwayHeader begins a GOAWAY frame without debug data: see RFC 9113, section 6.8.
const (
	goAwayHeader = "\x00\x00\x08\x07\x00\x00\x00\x00\x00"
	goAwaySize   = len(goAwayHeader) + 8
)

// tlsOverhead is what TLS adds to each record, with the AEAD cipher suites that
// HTTP/2 allows (RFC 5288, RFC 7905, RFC 8446).
var tlsOverhead = []int{
	5 + 1 + 16, // TLS 1.3
	5 + 8 + 16, // TLS 1.2 with AES-GCM
	5 + 16,     // TLS 1.2 with ChaCha20-Poly1305
}

// goingAway reports whether what was written ends with a GOAWAY frame. On TLS only
// its size can be seen, which the answer to a PING has too: so not if something was
// read meanwhile. Then net/http closes the connection in its own time. The caller
// holds c.mu.
func (c *conn) goingAway(b []byte) bool {
	if c.server.tls {
		return c.parting && c.idle.Load() && slices.Contains(tlsOverhead, len(b)-goAwaySize)
	}
	return len(b) >= goAwaySize && bytes.HasPrefix(b[len(b)-goAwaySize:], []byte(goAwayHeader))
}

// closeWrite tells the client that nothing more will come.
func closeWrite(c, raw net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		t.CloseWrite()
	}
	if w, ok := raw.(interface{ CloseWrite() error }); ok {
		w.CloseWrite()
	}
}
