package grace

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
)

// ErrNoSuccessor is wrapped in what Move returns while no successor serves: before a
// handoff, and when the successor has failed.
var ErrNoSuccessor = errors.New("no successor serves")

// moveTimeout bounds how long a successor may take to answer.
const moveTimeout = 3 * time.Second

// Move hands a connection to the successor, whose OnMove gets it with state: what the
// program has to say of it, such as a name, a position, or bytes that it has read too
// much; up to a megabyte. The program must neither read nor write it any more. It may be
// what a Listener or any net.Listener of package net has accepted, over TCP or a unix
// socket, or what http.Hijacker returned. A connection with TLS is an error, since its
// keys cannot be moved.
//
// Move waits until the successor has answered, a few seconds at most. After nil the
// connection is the successor's, and closed here without a word to the client. After an
// error it is still the program's, and nobody else reads it: there is no successor
// (ErrNoSuccessor), nor will be, since this process stops (ErrStopping); it has no OnMove,
// or refuses, or it has failed. Move works from
// OnDrain on, and may be called from many goroutines: those that call it at the same time
// share a message. It needs Wait to run, and Linux; elsewhere the error is
// errors.ErrUnsupported.
func (p *Process) Move(c net.Conn, state []byte) error {
	if err := p.moved.move(c, state); err != nil {
		return fmt.Errorf("grace: moving the connection of %v: %w", c.RemoteAddr(), err)
	}
	return nil
}

// Move calls Process.Move on a default Process.
func Move(c net.Conn, state []byte) error { return std.Move(c, state) }

// movedConns are the program's own connections that move: those that came from a
// predecessor are counted, and those that go to a successor travel together.
type movedConns struct {
	once    sync.Once
	open    *accept.Listener // of none that accepts
	mu      sync.Mutex       // guards what follows
	waiting []*moving
	sending bool
	gone    int // how many the successor has taken
}

// A moving connection waits for the successor's answer.
type moving struct {
	conn  syscall.Conn
	state []byte
	err   chan error
}

func (m *movedConns) list() *accept.Listener {
	m.once.Do(func() { m.open = accept.New(nil) })
	return m.open
}

func (m *movedConns) count() accept.Count {
	c := m.list().Count()
	m.mu.Lock()
	c.Moved = m.gone
	m.mu.Unlock()
	return c
}

// drain waits until none is open, nor can still come from a predecessor: where nobody
// serves after us, that finishes what it holds.
func (m *movedConns) drain(ctx context.Context, p *handoff.Predecessor, moves bool) error {
	if !moves {
		p.OnMove(nil, nil)
	} else if p.HasOnMove() {
		waitFor(ctx, p.Drained())
	}
	return m.list().Wait(ctx)
}

func (m *movedConns) move(c net.Conn, state []byte) error {
	if _, ok := c.(*tls.Conn); ok {
		return errors.New("the keys of TLS cannot be moved")
	}
	conn, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T gives access to no descriptor", c)
	}
	if len(state) > handoff.MaxState {
		return fmt.Errorf("%d bytes of state are too many, the limit is %d", len(state), handoff.MaxState)
	}
	w := &moving{conn, state, make(chan error, 1)}
	m.mu.Lock()
	m.waiting = append(m.waiting, w)
	if !m.sending {
		m.sending = true
		go m.send()
	}
	m.mu.Unlock()
	if err := <-w.err; err != nil {
		return err
	}
	c.Close() // another process has it too: that sends nothing
	return nil
}

// send sends those that wait, in batches. A successor that does not answer one is not
// asked for the others that wait by then, which would wait as long again.
func (m *movedConns) send() {
	for {
		batch := m.next()
		if batch == nil {
			return
		}
		late, err := m.offer(batch)
		if err != nil && !late && len(batch) > 1 && !errors.Is(err, handoff.ErrGone) {
			// One that was closed is no reason for the others to stay.
			for len(batch) > 0 && !late {
				late, err = m.offer(batch[:1])
				batch[0].err <- err
				batch = batch[1:]
			}
		}
		if late {
			m.mu.Lock()
			batch, m.waiting = append(batch, m.waiting...), nil
			m.mu.Unlock()
		}
		for _, w := range batch {
			w.err <- err
		}
	}
}

// next returns those that fit into one message, or nil when nobody waits.
func (m *movedConns) next() (batch []*moving) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, bytes := 0, 0
	for n < len(m.waiting) && n < handoff.MaxMove {
		bytes += len(m.waiting[n].state)
		if n > 0 && bytes > handoff.MaxState {
			break
		}
		n++
	}
	batch, m.waiting = m.waiting[:n:n], m.waiting[n:]
	if n == 0 {
		m.sending = false
		return nil
	}
	return batch
}

// offer offers a batch to the successor, and reports whether that did not answer in time.
func (m *movedConns) offer(batch []*moving) (late bool, err error) {
	g := handoff.Self()
	s := g.Successor()
	switch phase := g.Phase(); {
	case phase == stopping:
		return false, ErrStopping
	case s == nil || !phase.HasSuccessor():
		return false, ErrNoSuccessor
	}
	conns, states := make([]syscall.Conn, len(batch)), make([][]byte, len(batch))
	for i, w := range batch {
		conns[i], states[i] = w.conn, w.state
	}
	start := time.Now()
	if err = s.MoveOwn(conns, states, moveTimeout); err != nil {
		return time.Since(start) >= moveTimeout, err
	}
	m.mu.Lock()
	m.gone += len(batch)
	m.mu.Unlock()
	return false, nil
}

// receiveMoved gives OnMove a connection of the predecessor's. It is counted until it is
// closed.
func (p *Process) receiveMoved(c net.Conn, state []byte) {
	counted := countIn(p.moved.list(), p.moved.list().Add, c)
	_, _ = p.call("OnMove", func() error {
		returned := false
		defer func() {
			if !returned { // nobody else will close it
				counted.Close()
			}
		}()
		p.OnMove(counted, state)
		returned = true
		return nil
	})
}
