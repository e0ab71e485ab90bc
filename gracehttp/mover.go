package gracehttp

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
)

const (
	// ahead is how many connections may wait for a batch, and how many are in one (the
	// successor takes handoff.MaxMove). A request that comes meanwhile waits with its
	// connection: this bounds for how long. On all other connections, requests are
	// answered here as ever.
	ahead = 64
	// askTimeout is how long to wait for another of those that were asked, before more
	// are: all that are missing may have begun a request.
	askTimeout = 20 * time.Millisecond
)

// A mover hands connections to the successor, in batches.
type mover struct {
	hand    func([]syscall.Conn, []handoff.Waiting) error // gives a batch away, or fails and leaves it here
	came    chan struct{}                                 // somebody waits
	done    chan struct{}                                 // closed when nothing moves any more
	timeout time.Duration                                 // askTimeout

	mu      sync.Mutex     // guards what follows, and is held to close done
	waiting *batch         // the next one, or nil
	later   map[*conn]bool // those that came when enough others waited already
}

// A batch is offered to the successor, which takes all of it or nothing.
type batch struct {
	conns    []*conn
	taken    bool
	answered chan struct{} // closed when taken is known
}

func newMover(hand func([]syscall.Conn, []handoff.Waiting) error) *mover {
	return &mover{
		hand:    hand,
		came:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		later:   map[*conn]bool{},
		timeout: askTimeout,
	}
}

// offer waits until the connection's batch was offered to the successor, and returns
// it. It returns nil if there is no batch for it: not now, since enough others wait (it
// will be asked later), or not any more.
func (m *mover) offer(c *conn) *batch {
	b := m.enter(c)
	if b != nil {
		<-b.answered
	}
	return b
}

func (m *mover) enter(c *conn) *batch {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		return nil
	default:
	}
	if m.waiting == nil {
		m.waiting = &batch{answered: make(chan struct{})}
	} else if len(m.waiting.conns) == ahead {
		m.later[c] = true
		return nil
	}
	m.waiting.conns = append(m.waiting.conns, c)
	delete(m.later, c)
	select {
	case m.came <- struct{}{}:
	default:
	}
	return m.waiting
}

// next returns the batch that waits, or nil.
func (m *mover) next() *batch {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.waiting
	m.waiting = nil
	return b
}

func (b *batch) answer(taken bool) {
	b.taken = taken
	close(b.answered)
}

// run moves connections: the open ones, which it asks to come when they are idle, and
// those that come by themselves. It ends when ctx is done, or with the error with which
// a batch could not be moved.
func (m *mover) run(ctx context.Context, open []*accept.Entry) error {
	defer m.end()
	asked := 0 // about how many of those are still to come
	for ctx.Err() == nil {
		runtime.Gosched() // or the first would travel alone
		b := m.next()
		if b != nil {
			asked = max(0, asked-len(b.conns))
		}
		for asked < ahead && len(open) > 0 {
			if open[0].Conn.(*conn).wake() {
				asked++
			}
			open[0] = nil // it may be closed long before this drain ends
			open = open[1:]
		}
		for asked < ahead && m.askAgain() {
			asked++
		}
		if b == nil {
			if !m.wait(ctx, asked == ahead) {
				asked = 0
			}
			continue
		}
		err := m.move(b.conns)
		b.answer(err == nil)
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// askAgain asks one of those that came too early, and reports whether it has found one
// that is idle.
func (m *mover) askAgain() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.later {
		delete(m.later, c)
		if c.wake() {
			return true
		}
	}
	return false
}

// wait waits until somebody comes. If enough were asked, it returns false when none of
// them does within the timeout.
func (m *mover) wait(ctx context.Context, enough bool) bool {
	var late <-chan time.Time
	if enough {
		late = time.After(m.timeout)
	}
	select {
	case <-m.came:
	case <-ctx.Done():
	case <-late:
		return false
	}
	return true
}

// end lets those that wait stay here, and all that still come.
func (m *mover) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.done)
	if m.waiting != nil {
		m.waiting.answer(false)
	}
}

// move hands connections over. Some may have been closed since they came: they are no
// reason for the others to stay.
func (m *mover) move(conns []*conn) error {
	for {
		raw, waiting := make([]syscall.Conn, len(conns)), make([]handoff.Waiting, len(conns))
		for i, c := range conns {
			raw[i], waiting[i] = c.raw, c.waits()
		}
		err := m.hand(raw, waiting)
		if err == nil {
			return nil
		}
		open := slices.DeleteFunc(slices.Clone(conns), isClosed)
		if len(open) == len(conns) {
			return err
		}
		if len(open) == 0 {
			return nil
		}
		conns = open
	}
}

// isClosed reports whether a connection was closed here.
func isClosed(c *conn) bool {
	raw, err := c.raw.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}
