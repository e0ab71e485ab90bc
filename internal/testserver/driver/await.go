//go:build unix

package driver

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A Counter counts what happens, and wakes those that wait for it. The zero value
// is ready.
type Counter struct {
	mu      sync.Mutex
	n       int64
	changed chan struct{} // closed when n changes; nil: nobody waits
}

// Add counts one more.
func (c *Counter) Add() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// Load returns how many there were.
func (c *Counter) Load() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// More waits until it has counted n more.
func (c *Counter) More(tb testing.TB, n int64) {
	tb.Helper()
	want := c.Load() + n
	c.Until(tb, "the clients to get answers", func() bool { return c.Load() >= want })
}

// Until waits until something is so, and looks each time that something is
// counted.
func (c *Counter) Until(tb testing.TB, what string, is func() bool) {
	tb.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	for {
		c.mu.Lock()
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		if is() {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			tb.Fatalf("waited %v for %s", Patience, what)
		}
	}
}

// Eventually waits until something is so that nobody tells: another program's
// state, or that connections are refused. It has to look again and again.
func Eventually(tb testing.TB, what string, is func() bool) {
	tb.Helper()
	if !Becomes(is) {
		tb.Fatalf("waited %v for %s", Patience, what)
	}
}

// Becomes is Eventually for those that say themselves what they have seen: it reports
// whether it became so.
func Becomes(is func() bool) bool {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(Patience); !is(); <-ticker.C {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// Instant waits for an instant, so far from now, of which nothing tells: it is the test's
// choice, or until then nothing may happen.
func Instant(tb testing.TB, from time.Duration) {
	timer := time.NewTimer(from)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-tb.Context().Done():
	}
}

// AwaitRefused waits until connections to an address are refused. That can be a
// moment after its last listener was closed: a process that is just being started
// has copies of its parent's descriptors until it runs its own program.
func AwaitRefused(tb testing.TB, network, addr string) {
	tb.Helper()
	Eventually(tb, "connections to "+addr+" to be refused", func() bool {
		c, err := net.DialTimeout(network, addr, time.Second) // a full backlog does not answer
		if err == nil {
			c.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
	})
}

// Race reports whether the race detector runs.
const Race = raceEnabled
