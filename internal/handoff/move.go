package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/accept"
)

// Both ends of a batch of connections. The predecessor sends it with one end of a new
// socket pair, and the connections are its own until the answer on that has arrived.

const (
	// MaxMove is how many connections fit in one batch.
	MaxMove = maxFDs - 1

	// MaxState is how long, in bytes, what a program says of a connection may be.
	MaxState = 1 << 20
)

// canMove is false where shutting a socket down may discard what has arrived, on which
// the answer to a batch relies: two processes could read one connection.
const canMove = runtime.GOOS == "linux"

var errNoMove = fmt.Errorf("moving connections on %s: %w", runtime.GOOS, errors.ErrUnsupported)

// Move hands connections of a listener over, at most MaxMove at a time, and
// waits for the answer. The successor learns how long each has been waiting for its
// next request. After nil they are the successor's: close them here.
// After an error they are still ours, and nobody else reads them. That may be
// ErrGone, or that one of them was closed: the others may be moved without it.
// After the timeout no more can be moved.
func (s *Successor) Move(listener syscall.Conn, conns []syscall.Conn, waiting []Waiting, timeout time.Duration) error {
	place, err := s.place(listener)
	if err != nil {
		return errors.New("the listener is closed")
	}
	if place < 0 {
		return errors.New("the successor does not have this listener")
	}
	return s.offer(kindConns, connsBody{place, waiting}, conns, timeout)
}

// MoveOwn hands connections of the program's own over, as Move does, each with what the
// program says of it.
func (s *Successor) MoveOwn(conns []syscall.Conn, states [][]byte, timeout time.Duration) error {
	if !s.movesOwn.Load() {
		return errors.New("the successor takes no connections of the program's own")
	}
	if err := withFDs(conns, areOfNet); err != nil {
		return err
	}
	return s.offer(kindMove, moveBody{states}, conns, timeout)
}

// offer sends a batch and waits for the answer.
func (s *Successor) offer(k kind, body any, conns []syscall.Conn, timeout time.Duration) error {
	if !canMove {
		return errNoMove
	}
	if isClosed(s.heard) {
		return ErrGone
	}
	answer, theirs, err := controlPair()
	if err != nil {
		return err
	}
	defer answer.close()
	err = withFDs(conns, func(fds []int) error {
		return s.sendConns(k, body, append([]int{theirs}, fds...))
	})
	closeAll([]int{theirs})
	if err != nil {
		if isGone(err) {
			err = ErrGone
		}
		return err
	}
	return s.awaitAnswer(answer, timeout)
}

// sendConns sends a batch. The kernel limits the descriptors on their way
// (ETOOMANYREFS): others' must arrive first.
func (s *Successor) sendConns(k kind, body any, fds []int) error {
	var err error
	for wait := time.Millisecond; wait < time.Second; wait *= 2 {
		if err = s.control.send(k, body, fds...); !errors.Is(err, errTooManyFDs) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-s.heard:
		}
	}
	return err
}

// awaitAnswer waits for the answer to a batch.
func (s *Successor) awaitAnswer(answer *control, timeout time.Duration) error {
	received := make(chan error, 1)
	go func() { received <- answer.receiveAnswer() }()
	late := ErrGone
	select {
	case err := <-received:
		return err
	case <-s.heard:
	case <-time.After(timeout):
		late = fmt.Errorf("no answer within %v", timeout.Round(time.Millisecond))
	}
	// An answer now fails at the successor, or is among what we still read.
	answer.shutdown()
	if err := <-received; !errors.Is(err, ErrGone) {
		return err
	}
	return late
}

// receiveAnswer returns why a batch was refused, ErrGone if there is no answer, or nil.
func (c *control) receiveAnswer() error {
	m, err := c.receive()
	if err != nil {
		return ErrGone
	}
	closeAll(m.fds)
	var b takenBody
	switch {
	case m.kind != kindTaken || m.decode(&b) != nil:
		return ErrGone
	case b.Error != "":
		return errors.New(b.Error)
	}
	return nil
}

// takeConns takes a batch of connections over, or refuses all of it.
func (p *Predecessor) takeConns(m *message) {
	var b struct {
		connsBody
		moveBody
	}
	own := m.kind == kindMove
	if m.decode(&b) != nil || len(m.fds) == 0 || own && len(b.States) != len(m.fds)-1 && !m.truncated() {
		closeAll(m.fds)
		return // the predecessor sees the answer's socket closed, and keeps them
	}
	p.taking.Lock()
	defer p.taking.Unlock()
	take, onMove, list, refusal := p.receivers[b.Listener], p.onMove, p.moved, ""
	switch {
	case own && onMove == nil:
		refusal = "the successor has no OnMove"
	case !own && take == nil:
		refusal = fmt.Sprintf("nobody serves listener %d any more", b.Listener)
	}
	conns := m.take(refusal)
	if own {
		for i, f := range conns {
			coming := new(accept.Entry)
			list.Add(coming) // a drain that has refused more waits for what is here
			go func() {
				defer list.Remove(coming)
				p.arrive(f, b.States[i], onMove)
			}()
		}
	} else if conns != nil {
		if len(b.Waiting) != len(conns) {
			b.Waiting = nil
		}
		take(conns, b.Waiting)
	}
}

// arrive makes a connection of a file that is ours now.
func (p *Predecessor) arrive(f *os.File, state []byte, take func(net.Conn, []byte)) {
	defer f.Close()
	restore := accept.KeepOptions(f)
	c, err := net.FileConn(f)
	for wait := 5 * time.Millisecond; isTemporary(err); wait = min(2*wait, time.Second) {
		p.g.Logf("grace: connection from the predecessor: %v; trying again until it works", err)
		time.Sleep(wait)
		c, err = net.FileConn(f)
	}
	if err == nil {
		restore()
		take(c, state)
	}
}

// isTemporary reports whether an error is one of those that pass, such as too many open
// files.
func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// take answers a batch, and returns its connections, or nil if it was refused.
func (m *message) take(refusal string) []*os.File {
	answer, fds := os.NewFile(uintptr(m.fds[0]), "answer"), m.fds[1:]
	defer answer.Close()
	body := takenBody{Error: refusal}
	switch {
	case refusal != "":
	case m.truncated():
		body.Error = fmt.Sprintf("descriptors were lost on the way: %v", syscall.EMFILE)
	case nearLimit(fds):
		body.Error = fmt.Sprintf("few descriptors are left: %v", syscall.EMFILE)
	}
	// They are ours only once the predecessor can know.
	text, err := encode(kindTaken, body, 0)
	if err == nil {
		_, err = answer.Write(text)
	}
	if err != nil || body.Error != "" {
		closeAll(fds)
		return nil
	}
	conns := make([]*os.File, len(fds))
	for i, fd := range fds {
		setNonblock(fd)
		conns[i] = os.NewFile(uintptr(fd), "connection")
	}
	return conns
}
