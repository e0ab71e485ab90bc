// Package accept lets a listener stop accepting for a while, or for good, and
// keeps the book of the connections that it has accepted.
package accept

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// Closing is held while a listener is closed, and by those who call its
// SetUnlinkOnClose, which net.UnixListener does not guard.
var Closing sync.Mutex

// A Gate stands before a listener's Accept. It opens again after Pause, which
// a closed listener never could: that is what lets a process take over again
// from a successor that failed.
type Gate struct {
	listener net.Listener

	mu        sync.Mutex // guards what follows
	changed   sync.Cond  // paused, ended or accepting has changed
	paused    bool       // Accept waits
	pauses    int        // how often
	ended     bool       // Accept fails
	closed    bool       // so is the listener
	accepting int        // calls of Accept that may still bring a connection
	open      int        // entries in the book
	oldest    *Entry
	newest    *Entry
	empty     chan struct{} // closed when nothing is open or on its way; nil: nobody waits
}

// An Entry is the book's line for one connection. Embed it in the connection.
type Entry struct {
	Conn any // whatever the owner wants to find by it

	since      time.Time
	prev, next *Entry
	listed     bool
}

// Since returns when the connection was entered.
func (e *Entry) Since() time.Time { return e.since }

// New returns an open gate before l.
func New(l net.Listener) *Gate {
	g := &Gate{listener: l}
	g.changed.L = &g.mu
	return g
}

// Accept waits for a connection. While the gate is paused it waits for Resume;
// when it is ended or closed it returns net.ErrClosed. The caller must enter each
// connection that it gets with Admit: until then it counts as on its way.
func (g *Gate) Accept() (net.Conn, error) {
	for {
		g.mu.Lock()
		for g.paused && !g.ended {
			g.changed.Wait()
		}
		if g.ended {
			g.mu.Unlock()
			return nil, net.ErrClosed
		}
		g.accepting++
		pauses := g.pauses
		g.mu.Unlock()

		c, err := g.listener.Accept()
		if err == nil {
			return c, nil
		}

		g.mu.Lock()
		g.accepted()
		// A pause may be over by the time that it shows here.
		ours := pauses != g.pauses && errors.Is(err, os.ErrDeadlineExceeded)
		again := (g.paused || ours) && !g.ended
		if g.ended {
			err = net.ErrClosed
		}
		g.mu.Unlock()
		if !again {
			return nil, err
		}
	}
}

// Admit enters a connection that Accept has returned.
func (g *Gate) Admit(e *Entry) {
	g.mu.Lock()
	g.add(e)
	g.accepted()
	g.mu.Unlock()
}

func (g *Gate) accepted() {
	g.accepting--
	if g.paused {
		g.changed.Broadcast()
	}
	g.checkEmpty()
}

// Add enters a connection that came by another way than Accept.
func (g *Gate) Add(e *Entry) {
	g.mu.Lock()
	g.add(e)
	g.mu.Unlock()
}

func (g *Gate) add(e *Entry) {
	e.since, e.listed = time.Now(), true
	e.prev = g.newest
	if e.prev != nil {
		e.prev.next = e
	} else {
		g.oldest = e
	}
	g.newest = e
	g.open++
}

// Remove strikes a connection out, and reports whether it was still in.
func (g *Gate) Remove(e *Entry) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !e.listed {
		return false
	}
	e.listed = false
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		g.oldest = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		g.newest = e.prev
	}
	e.prev, e.next = nil, nil
	g.open--
	g.checkEmpty()
	return true
}

// Active returns how many connections are open, and since when the oldest is.
func (g *Gate) Active() (open int, oldest time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.oldest != nil {
		oldest = g.oldest.since
	}
	return g.open, oldest
}

// Entries returns those that are in the book now.
func (g *Gate) Entries() []*Entry {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := make([]*Entry, 0, g.open)
	for e := g.oldest; e != nil; e = e.next {
		all = append(all, e)
	}
	return all
}

// Pause stops accepting without closing the listener, which goes on queueing
// connections in the kernel. It reports whether the listener can be paused:
// one without SetDeadline cannot be called back from its Accept. When Pause
// returns true, all that was accepted is in the book.
func (g *Gate) Pause() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.pause() {
		return false
	}
	for g.paused && g.accepting > 0 && !g.ended {
		g.changed.Wait()
	}
	return true
}

func (g *Gate) pause() bool {
	l, ok := g.listener.(interface{ SetDeadline(time.Time) error })
	if ok && !g.closed {
		g.paused = true
		g.pauses++
		l.SetDeadline(time.Unix(1, 0))
	}
	return ok
}

// End stops accepting as Pause does, and lets Accept return net.ErrClosed.
func (g *Gate) End() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pause()
	g.ended = true
	g.changed.Broadcast()
}

// Resume accepts again after Pause, and reports whether that is possible.
func (g *Gate) Resume() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if l, ok := g.listener.(interface{ SetDeadline(time.Time) error }); ok && !g.ended {
		err := l.SetDeadline(time.Time{})
		g.paused = false
		g.changed.Broadcast()
		return err == nil // else somebody has closed it
	}
	return false
}

// Reopen makes a pause of an end.
func (g *Gate) Reopen() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended = g.closed
}

// Close closes the listener and ends every Accept, those that are waiting for
// Resume too. It does not wait for connections. Only the first call closes;
// later ones return nil.
func (g *Gate) Close() error {
	g.mu.Lock()
	first := !g.closed
	g.ended, g.closed = true, true
	g.changed.Broadcast()
	g.mu.Unlock()
	if !first {
		return nil
	}
	Closing.Lock()
	defer Closing.Unlock()
	return g.listener.Close()
}

// Wait waits until no connection is open and, the gate being paused or closed,
// none can come in any more. It returns ctx.Err() if that ends first.
func (g *Gate) Wait(ctx context.Context) error {
	g.mu.Lock()
	if g.empty == nil {
		g.empty = make(chan struct{})
	}
	empty := g.empty
	g.checkEmpty()
	g.mu.Unlock()

	select {
	case <-empty:
		return nil
	case <-ctx.Done():
	}
	select {
	case <-empty: // at the same time
		return nil
	default:
		return ctx.Err()
	}
}

// checkEmpty tells those that wait if the last connection is gone. The caller
// holds g.mu.
func (g *Gate) checkEmpty() {
	if g.empty != nil && g.open == 0 && g.accepting == 0 {
		close(g.empty)
		g.empty = nil
	}
}
