package gracehttp

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"sync/atomic"
	"syscall"
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
		wantWoken  bool
	}{
		{name: "first request", fresh: true},
		{name: "next request"},
		{name: "handshake", tls: true, fresh: true, wantWoken: true},
		{name: "next request over TLS", tls: true},
		{name: "ended", gone: true, wantWoken: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, raw := fakeConn()
			c.server.tls, c.gone = test.tls, test.gone
			if !test.fresh {
				c.state.Store(idle | armed)
			}
			raw.read = func() { c.wake() }
			c.Read(make([]byte, bufferSize))
			want := c.deadline
			if test.wantWoken {
				want = longAgo
			}
			if kicked := c.is(woken); kicked != test.wantWoken || !raw.deadline.Equal(want) {
				t.Errorf("kicked: %v, with the deadline %v; want %v and %v", kicked, raw.deadline, test.wantWoken, want)
			}
			if c.is(idle | armed) {
				t.Error("the request has not begun")
			}
		})
	}
}

// The same at any moment of it, and of the Read before that: one that is about to wait is
// woken, too.
func TestKickAtAnyMoment(t *testing.T) {
	for _, waits := range []bool{false, true} {
		t.Run(fmt.Sprint("waits=", waits), func(t *testing.T) {
			rounds := int64(200_000)
			if testing.Short() {
				rounds = 10_000
			}
			c, raw := fakeConn()
			var round, kicks atomic.Int64
			var woke atomic.Bool
			await := func(n *atomic.Int64, want int64) {
				for n.Load() < want {
					runtime.Gosched()
				}
			}
			pass := func(n int64) {
				for range n {
					round.Load()
				}
			}
			defer round.Store(rounds) // so that all kicks end
			go func() {
				for n := int64(1); n <= rounds; n++ {
					await(&round, n)
					pass(n % 61)
					woke.Store(c.wake())
					kicks.Store(n)
				}
			}()
			b := make([]byte, bufferSize)
			for n := int64(1); n <= rounds; n++ {
				c.state.Store(idle | armed)
				raw.deadline = c.deadline
				if waits {
					raw.read = func() { await(&kicks, n) }
				}
				round.Store(n)
				pass(n % 67)
				c.Read(b)
				await(&kicks, n)
				if waits && !woke.Load() {
					t.Fatalf("round %d: a Read that waits was not woken", n)
				}
				if phase := c.state.Load(); phase != 0 || !raw.deadline.Equal(c.deadline) {
					t.Fatalf("round %d: a request begins in phase %b, with the deadline %v", n, phase, raw.deadline)
				}
			}
		})
	}
}

// Whoever else sets a deadline does not end a kick: its Read might not have noticed.
func TestDeadlineAfterAKick(t *testing.T) {
	c, raw := fakeConn()
	c.wake()
	want := time.Unix(3, 0)
	if err := c.SetReadDeadline(want); err != nil || !raw.deadline.Equal(longAgo) {
		t.Errorf("the deadline is %v, %v; want %v until the kick was looked at", raw.deadline, err, longAgo)
	}
	if c.look(nil) || !raw.deadline.Equal(want) {
		t.Errorf("the deadline is %v afterwards, want %v", raw.deadline, want)
	}
}

func TestNothingIsReadAfterTheEnd(t *testing.T) {
	c, raw := fakeConn()
	d := &drain{server: c.server}
	d.pace.Store(new(pace))
	c.server.draining.Store(d)
	c.state.Store(idle | armed)
	c.wake()
	raw.read = func() { t.Error("it was read") }
	for range 2 {
		if n, err := c.Read(make([]byte, bufferSize)); n != 0 || err != io.EOF {
			t.Errorf("Read has returned %d, %v; want 0, %v", n, err, io.EOF)
		}
	}
}

// If net/http has a larger buffer, a Read that asks for less than that finds bytes of
// a request in it.
func TestBufferLargerThanKnown(t *testing.T) {
	c, _ := fakeConn()
	c.Read(make([]byte, 2*bufferSize))
	for size, empty := range map[int]bool{2 * bufferSize: true, bufferSize: false} {
		c.state.Store(idle | armed)
		c.wake()
		c.look(make([]byte, size))
		if c.is(idle) != empty {
			t.Errorf("with a Read of %d bytes the buffer is taken for empty: %v, want %v", size, c.is(idle), empty)
		}
	}
}

// fakeConn returns a fresh connection on which there is always something to be read.
func fakeConn() (*conn, *fakeRaw) {
	raw := &fakeRaw{read: func() {}}
	c := &conn{deadline: time.Unix(2, 0)}
	c.init(&server{}, raw)
	return c, raw
}

type fakeRaw struct {
	rawConn
	read     func() // while something arrives
	deadline time.Time
}

func (r *fakeRaw) Read(b []byte) (int, error) {
	r.read()
	return copy(b, "x"), nil
}

func (r *fakeRaw) SetReadDeadline(t time.Time) error {
	r.deadline = t
	return nil
}

func (r *fakeRaw) SyscallConn() (syscall.RawConn, error) { return nil, net.ErrClosed }
