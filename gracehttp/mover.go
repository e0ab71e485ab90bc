package gracehttp

import (
	"context"
	"runtime"
	"slices"
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
	offers  chan offer                                    // of those that wait for a batch
	missed  chan struct{}                                 // one came when enough others waited already
	done    chan struct{}                                 // closed when nothing moves any more
	timeout time.Duration                                 // askTimeout
}

// An offer is what a connection's reader makes. The successor takes all of a batch or
// nothing.
type offer struct {
	conn  *conn
	taken chan bool // brings the answer
}

func newMover(hand func([]syscall.Conn, []handoff.Waiting) error) *mover {
	return &mover{
		hand:    hand,
		offers:  make(chan offer, ahead),
		missed:  make(chan struct{}, 1),
		done:    make(chan struct{}),
		timeout: askTimeout,
	}
}

// offer waits until the connection was offered to the successor, and reports whether that
// has taken it. It is not offered now if enough others wait (it will be asked later), nor
// when nothing moves any more.
func (m *mover) offer(c *conn) (offered, taken bool) {
	o := offer{c, make(chan bool, 1)}
	select {
	case m.offers <- o:
	default:
		select {
		case m.missed <- struct{}{}:
		default:
		}
		return false, false
	}
	select {
	case taken = <-o.taken:
		return true, taken
	case <-m.done:
	}
	select {
	case taken = <-o.taken: // at the same time
		return true, taken
	default:
		return false, false
	}
}

// run moves connections: those that list returns, which it asks to come when they are
// idle, and those that come by themselves. It ends when ctx is done, or with the error
// with which a batch could not be moved.
func (m *mover) run(ctx context.Context, list func() []*accept.Entry) error {
	defer close(m.done)
	var batch []offer
	open := list()
	asked := 0      // about how many of those are still to come
	missed := false // some had come when there was no room: they are to be asked again
	for ctx.Err() == nil {
		for asked < ahead && (len(open) > 0 || missed) {
			if len(open) == 0 {
				open, missed = list(), false
				continue
			}
			if open[0].Conn.(*conn).wake() {
				asked++
			}
			open[0] = nil // it may be closed long before this drain ends
			open = open[1:]
		}
		if len(batch) > 0 {
			err := m.move(batch)
			for _, o := range batch {
				o.taken <- err == nil
			}
			if err != nil && ctx.Err() == nil {
				return err
			}
		}
		batch = nil
		var late <-chan time.Time
		if len(open) > 0 || missed {
			late = time.After(m.timeout)
		}
		select {
		case o := <-m.offers:
			batch = m.withOthers(o)
			asked = max(0, asked-len(batch))
		case <-m.missed:
			asked, missed = 0, true // it may have been all of those
		case <-late:
			asked = 0
		case <-ctx.Done():
		}
	}
	return nil
}

// withOthers returns a batch of this one and those that wait too.
func (m *mover) withOthers(first offer) []offer {
	runtime.Gosched() // or it would travel alone
	batch := []offer{first}
	for len(batch) < ahead {
		select {
		case o := <-m.offers:
			batch = append(batch, o)
		default:
			return batch
		}
	}
	return batch
}

// move hands connections over. Some may have been closed since they came: they are no
// reason for the others to stay.
func (m *mover) move(batch []offer) error {
	for len(batch) > 0 {
		raw, waiting := make([]syscall.Conn, len(batch)), make([]handoff.Waiting, len(batch))
		for i, o := range batch {
			raw[i], waiting[i] = o.conn.raw, o.conn.waits()
		}
		err := m.hand(raw, waiting)
		if err == nil {
			return nil
		}
		open := slices.DeleteFunc(slices.Clone(batch), isClosed)
		if len(open) == len(batch) {
			return err
		}
		batch = open
	}
	return nil
}

// isClosed reports whether a connection was closed here.
func isClosed(o offer) bool {
	raw, err := o.conn.raw.SyscallConn()
	return err != nil || raw.Control(func(uintptr) {}) != nil
}
