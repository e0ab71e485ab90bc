// Package accept lets a listener stop accepting for a while, or for good, and
// keeps a list of the connections that it has open.
package accept

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// A Listener accepts from a listening socket. It accepts again after Pause, which
// a closed socket never could: that is what lets a process take over again
// from a successor that failed.
type Listener struct {
	socket net.Listener

	mu        sync.Mutex // guards what follows
	changed   sync.Cond  // paused, ended or accepting has changed
	paused    bool       // Accept waits
	pauses    int        // how often
	ended     bool       // Accept fails
	closed    bool       // so is the socket
	accepting int        // calls of Accept that may still bring a connection
	open      int        // entries in the list, from the oldest to the newest
	oldest    *Entry
	newest    *Entry
	empty     chan struct{} // closed when nothing is open or on its way; nil: nobody waits
}

// An Entry is one connection in the list. Embed it in the connection.
type Entry struct {
	Conn any // whatever the owner wants to find by it

	since      time.Time
	prev, next *Entry
	listed     bool
}

// Since returns when the connection was listed.
func (e *Entry) Since() time.Time { return e.since }

// New returns a Listener that accepts from socket.
func New(socket net.Listener) *Listener {
	l := &Listener{socket: socket}
	l.changed.L = &l.mu
	return l
}

// Accept waits for a connection. While the listener is paused it waits for Resume;
// when it is ended or closed it returns net.ErrClosed. The caller must list each
// connection that it gets with Admit: until then it counts as on its way.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		for l.paused && !l.ended {
			l.changed.Wait()
		}
		if l.ended {
			l.mu.Unlock()
			return nil, net.ErrClosed
		}
		l.accepting++
		pauses := l.pauses
		l.mu.Unlock()

		c, err := l.socket.Accept()
		if err == nil {
			return c, nil
		}

		l.mu.Lock()
		l.accepted()
		// A pause may be over by the time that it shows here.
		ours := pauses != l.pauses && errors.Is(err, os.ErrDeadlineExceeded)
		again := (l.paused || ours) && !l.ended
		if l.ended {
			err = net.ErrClosed
		}
		l.mu.Unlock()
		if !again {
			return nil, err
		}
	}
}

// Admit lists a connection that Accept has returned.
func (l *Listener) Admit(e *Entry) {
	l.mu.Lock()
	l.add(e)
	l.accepted()
	l.mu.Unlock()
}

func (l *Listener) accepted() {
	l.accepting--
	if l.paused {
		l.changed.Broadcast()
	}
	l.checkEmpty()
}

// Add lists a connection that came by another way than Accept.
func (l *Listener) Add(e *Entry) {
	l.mu.Lock()
	l.add(e)
	l.mu.Unlock()
}

func (l *Listener) add(e *Entry) {
	e.since, e.listed = time.Now(), true
	e.prev = l.newest
	if e.prev != nil {
		e.prev.next = e
	} else {
		l.oldest = e
	}
	l.newest = e
	l.open++
}

// Remove takes a connection off the list, and reports whether it was on it.
func (l *Listener) Remove(e *Entry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !e.listed {
		return false
	}
	e.listed = false
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		l.oldest = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		l.newest = e.prev
	}
	e.prev, e.next = nil, nil
	l.open--
	l.checkEmpty()
	return true
}

// Count returns how many connections are open, and since when the oldest is.
func (l *Listener) Count() (c Count) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.oldest != nil {
		c.Oldest = l.oldest.since
	}
	c.Open = l.open
	return c
}

// Entries returns those that are listed now.
func (l *Listener) Entries() []*Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*Entry, 0, l.open)
	for e := l.oldest; e != nil; e = e.next {
		all = append(all, e)
	}
	return all
}

// Pause stops accepting without closing the socket, which goes on queueing
// connections in the kernel. It reports whether that is possible: one without
// SetDeadline cannot be called back from its Accept. When Pause returns true, all
// that was accepted is listed.
func (l *Listener) Pause() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.pause() {
		return false
	}
	for l.paused && l.accepting > 0 && !l.ended {
		l.changed.Wait()
	}
	return true
}

func (l *Listener) pause() bool {
	d, ok := l.socket.(interface{ SetDeadline(time.Time) error })
	if ok && !l.closed {
		l.paused = true
		l.pauses++
		d.SetDeadline(time.Unix(1, 0))
	}
	return ok
}

// End stops accepting as Pause does, and lets Accept return net.ErrClosed.
func (l *Listener) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pause()
	l.ended = true
	l.changed.Broadcast()
}

// Resume accepts again after Pause, and reports whether that is possible.
func (l *Listener) Resume() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, ok := l.socket.(interface{ SetDeadline(time.Time) error })
	if !ok || l.ended {
		return false
	}
	err := d.SetDeadline(time.Time{})
	l.paused = false
	l.changed.Broadcast()
	return err == nil // else somebody has closed it
}

// Reopen makes a pause of an end. A closed listener stays closed.
func (l *Listener) Reopen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = l.closed
}

// Close closes the socket and ends every Accept, those that are waiting for
// Resume too. It does not wait for connections. Only the first call closes;
// later ones return nil.
func (l *Listener) Close() error {
	l.mu.Lock()
	first := !l.closed
	l.ended, l.closed = true, true
	l.changed.Broadcast()
	l.mu.Unlock()
	if !first {
		return nil
	}
	unlinkMu.Lock()
	defer unlinkMu.Unlock()
	return l.socket.Close()
}

// unlinkMu guards what net.UnixListener does not: SetUnlinkOnClose, and Close which
// looks at it.
var unlinkMu sync.Mutex

// SetUnlinkOnClose says whether closing a socket removes its path, if it has one and
// the method of (*net.UnixListener). It may be called while a Listener is closed.
func SetUnlinkOnClose(socket any, unlink bool) {
	if u, ok := socket.(interface{ SetUnlinkOnClose(bool) }); ok {
		unlinkMu.Lock()
		defer unlinkMu.Unlock()
		u.SetUnlinkOnClose(unlink)
	}
}

// Wait waits until no connection is open and, the listener being paused or closed,
// none can come in any more. It returns ctx.Err() if that ends first.
func (l *Listener) Wait(ctx context.Context) error {
	l.mu.Lock()
	if l.empty == nil {
		l.empty = make(chan struct{})
	}
	empty := l.empty
	l.checkEmpty()
	l.mu.Unlock()

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
// holds l.mu.
func (l *Listener) checkEmpty() {
	if l.empty != nil && l.open == 0 && l.accepting == 0 {
		close(l.empty)
		l.empty = nil
	}
}
