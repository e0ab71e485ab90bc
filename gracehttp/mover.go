package gracehttp

import (
	"context"
	"errors"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
)

const (
	// ahead is how many idle connections are asked for at a time. A request that
	// comes while its connection waits to be moved waits as well, so that must not be
	// for all the others.
	ahead = 64
	// askTimeout is after what time others are asked if none of these comes: all may
	// have begun a request.
	askTimeout = 20 * time.Millisecond
)

// A mover hands connections to the successor, in batches.
type mover struct {
	hand    func([]syscall.Conn) error // as handoff.Successor's Move
	onError func(error)
	refused atomic.Bool
	wake    chan struct{} // a batch is waiting
	done    chan struct{} // closed when nothing moves any more
	timeout time.Duration // askTimeout

	mu      sync.Mutex // guards what follows, and is held to close done
	waiting []*batch
}

// A batch is of connections that move, or stay, together.
type batch struct {
	conns    []*conn
	taken    bool
	answered chan struct{} // closed when taken is decided
}

func newMover(hand func([]syscall.Conn) error, onError func(error)) *mover {
	return &mover{
		hand:    hand,
		onError: onError,
		wake:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		timeout: askTimeout,
	}
}

// offer waits until the connection is the successor's, or is not and stays here.
func (m *mover) offer(c *conn) bool {
	b := m.enter(c)
	if b == nil {
		return false
	}
	<-b.answered
	return b.taken
}

// enter adds a connection to a batch, or returns nil if nothing moves any more.
func (m *mover) enter(c *conn) *batch {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		return nil
	default:
	}
	last := len(m.waiting) - 1
	if last < 0 || len(m.waiting[last].conns) == handoff.MaxMove {
		m.waiting = append(m.waiting, &batch{answered: make(chan struct{})})
		last++
	}
	b := m.waiting[last]
	b.conns = append(b.conns, c)
	select {
	case m.wake <- struct{}{}:
	default:
	}
	return b
}

// next returns the batch that waits longest, or nil.
func (m *mover) next() *batch {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting) == 0 {
		return nil
	}
	b := m.waiting[0]
	m.waiting = m.waiting[1:]
	return b
}

func (b *batch) answer(taken bool) {
	b.taken = taken
	close(b.answered)
}

// run moves what is offered, and asks those that were open for that if they are idle,
// until ctx is done or a batch is refused.
func (m *mover) run(ctx context.Context, open []*accept.Entry) {
	defer m.end()
	asked := 0 // that may still come
	for ctx.Err() == nil {
		runtime.Gosched() // or the first would travel alone
		b := m.next()
		if b != nil {
			asked = max(0, asked-len(b.conns))
		}
		for asked < ahead && len(open) > 0 {
			if open[0].Conn.(*conn).kick() {
				asked++
			}
			open[0] = nil // so that it can be freed
			open = open[1:]
		}
		if b == nil {
			if !m.wait(ctx, len(open) > 0) {
				asked = 0
			}
			continue
		}
		err := m.move(b.conns)
		if err != nil && ctx.Err() == nil { // a drain that was called off says nothing about the successor
			m.onError(err)
			m.refused.Store(true)
		}
		b.answer(err == nil)
		if err != nil {
			return
		}
	}
}

// wait waits for an offer. If more connections are to be asked, that is not for long,
// and it reports whether there may be one.
func (m *mover) wait(ctx context.Context, more bool) bool {
	var enough <-chan time.Time
	if more {
		enough = time.After(m.timeout)
	}
	select {
	case <-m.wake:
	case <-ctx.Done():
	case <-enough:
		return false
	}
	return true
}

// end lets what waits, and what is still offered, stay here.
func (m *mover) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.done)
	for _, b := range m.waiting {
		b.answer(false)
	}
}

// move hands connections over. Those that were closed while they waited do not count.
func (m *mover) move(conns []*conn) error {
	for {
		raw := make([]syscall.Conn, len(conns))
		for i, c := range conns {
			raw[i] = c.raw
		}
		err := m.hand(raw)
		if !errors.Is(err, net.ErrClosed) {
			return err
		}
		conns = slices.DeleteFunc(slices.Clone(conns), isClosed)
		if len(conns) == 0 {
			return nil
		}
	}
}

// isClosed reports whether a connection was closed here.
func isClosed(c *conn) bool {
	raw, err := c.raw.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}
