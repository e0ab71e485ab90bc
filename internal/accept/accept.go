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

const (
	// wrapperTimeout is how long a wrapper may take until its Accept has ended.
	wrapperTimeout = 100 * time.Millisecond

	// emptyTime is how long PauseEmpty goes on accepting.
	emptyTime = 50 * time.Millisecond
)

var longAgo = time.Unix(1, 0)

// A Listener accepts from a listening socket. It accepts again after Pause, which
// a closed socket never could: that is what lets a process take over again
// from a successor that failed.
type Listener struct {
	socket net.Listener
	pauser Pauser // nil: Accept cannot be called back
	wraps  bool   // socket is another's, which need not return at once when it is called back

	mu        sync.Mutex // guards what follows
	changed   sync.Cond  // paused, ended or accepting has changed
	paused    bool       // Accept waits
	pauses    int        // how often
	emptying  bool       // Accept does not wait yet, but until nobody comes
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

// A Pauser ends a call of Accept by a deadline, as (*net.TCPListener).SetDeadline.
type Pauser interface{ SetDeadline(time.Time) error }

// New returns a Listener that accepts from socket.
func New(socket net.Listener) *Listener {
	pauser, _ := socket.(Pauser)
	l := &Listener{socket: socket, pauser: pauser}
	l.changed.L = &l.mu
	return l
}

// NewWrapped returns a Listener that accepts from a wrapper around what is paused by
// pauser, which may be nil.
func NewWrapped(wrapper net.Listener, pauser Pauser) *Listener {
	l := New(wrapper)
	l.pauser, l.wraps = pauser, true
	return l
}

// Accept waits for a connection. While the listener is paused it waits for Resume;
// when it is ended or closed it returns net.ErrClosed. The caller must list each
// connection that it gets with Admit: until then it counts as on its way.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		for l.paused && !l.emptying && !l.ended {
			l.changed.Wait()
		}
		if l.ended {
			l.mu.Unlock()
			return nil, net.ErrClosed
		}
		l.accepting++
		pauses, socket := l.pauses, l.socket
		l.mu.Unlock()

		c, err := socket.Accept()
		if err == nil {
			return c, nil
		}

		l.mu.Lock()
		l.emptying = false
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
// that was accepted is listed, unless a wrapper holds it up.
func (l *Listener) Pause() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.pause(longAgo) {
		return false
	}
	l.awaitPause(wrapperTimeout)
	return true
}

// PauseEmpty is Pause when nobody has been waiting in the kernel for a moment, for a
// wrapper: what waits there has to come through it.
func (l *Listener) PauseEmpty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.pause(time.Now().Add(emptyTime)) {
		return false
	}
	l.emptying = true
	l.changed.Broadcast()
	l.awaitPause(emptyTime + wrapperTimeout)
	l.emptying = false
	return true
}

func (l *Listener) pause(when time.Time) bool {
	if l.pauser != nil && !l.closed {
		l.paused = true
		l.pauses++
		l.pauser.SetDeadline(when)
	}
	return l.pauser != nil
}

// awaitPause waits until no Accept is under way. A wrapper may be waiting for something
// else, such as the end of another connection: it has until the timeout. The caller holds
// l.mu.
func (l *Listener) awaitPause(timeout time.Duration) {
	late := false
	if l.wraps {
		defer time.AfterFunc(timeout, func() {
			l.mu.Lock()
			late = true
			l.changed.Broadcast()
			l.mu.Unlock()
		}).Stop()
	}
	for l.paused && (l.accepting > 0 || l.emptying) && !l.ended && !late {
		l.changed.Wait()
	}
}

// End stops accepting as Pause does, and lets Accept return net.ErrClosed.
func (l *Listener) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pause(longAgo)
	l.ended = true
	l.changed.Broadcast()
}

// Resume accepts again after Pause, and reports whether that is possible.
func (l *Listener) Resume() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pauser == nil || l.ended {
		return false
	}
	err := l.pauser.SetDeadline(time.Time{})
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

// Replace lets a closed listener accept from another socket, paused.
func (l *Listener) Replace(socket net.Listener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.socket, l.paused = socket, true
	l.pauser, _ = socket.(Pauser)
	l.ended, l.closed = false, false
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
