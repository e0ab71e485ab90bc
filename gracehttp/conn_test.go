package gracehttp

import (
	"testing"
	"time"
	"unsafe"
)

// What is looked at of a connection while a request is under way is one line of the
// processor's cache, if each of several that are allocated together begins with one.
func TestConnectionKeepsToCacheLines(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("not laid out for this machine")
	}
	const line = 64
	var c tcpConn
	if size := unsafe.Sizeof(c); size%line != 0 {
		t.Errorf("a connection has %d bytes, want a multiple of %d", size, line)
	}
	if end := unsafe.Offsetof(c.conn) + unsafe.Offsetof(c.conn.entry); end > line {
		t.Errorf("what is looked at while a request is under way ends at byte %d, want at most %d", end, line)
	}
}

// A kick that comes just before a Read has its bytes is for nobody, unless these begin
// a TLS handshake: then it is still to be looked at, as it is on what has ended.
func TestKickBeforeARequestBegins(t *testing.T) {
	for _, test := range []struct {
		name       string
		tls, fresh bool
		gone       bool
		wantKicked bool
	}{
		{name: "first request", fresh: true},
		{name: "next request"},
		{name: "handshake", tls: true, fresh: true, wantKicked: true},
		{name: "next request over TLS", tls: true},
		{name: "ended", gone: true, wantKicked: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			raw := &deadlineConn{}
			c := &conn{gone: test.gone, deadline: time.Unix(2, 0)}
			c.init(&server{tls: test.tls}, raw)
			c.fresh.Store(test.fresh)
			c.kick()
			c.begin()
			want := c.deadline
			if test.wantKicked {
				want = longAgo
			}
			if kicked := c.kicked.Load(); kicked != test.wantKicked || !raw.deadline.Equal(want) {
				t.Errorf("kicked: %v, with the deadline %v; want %v and %v", kicked, raw.deadline, test.wantKicked, want)
			}
		})
	}
}

type deadlineConn struct {
	rawConn
	deadline time.Time
}

func (c *deadlineConn) SetReadDeadline(t time.Time) error {
	c.deadline = t
	return nil
}
