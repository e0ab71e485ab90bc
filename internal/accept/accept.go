// Package accept lets a listener stop accepting for a while, or for good, and
// keeps a list of the connections that it has open.
package accept

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// WrapperTimeout is how long a wrapper may take until its Accept has ended, or its Close.
	WrapperTimeout = 100 * time.Millisecond

	// emptyTime is how long PauseEmpty goes on accepting.
	emptyTime = 50 * time.Millisecond

	// backlogTime is how long CloseLast keeps what nobody comes for.
	backlogTime = time.Second
)

// A Listener accepts from a listening socket. It accepts again after Pause, which
// a closed socket never could: that is what lets a process take over again
// from a successor that failed.
type Listener struct {
	socket net.Listener
	pauser Pauser // nil: Accept cannot be called back
	wraps  bool   // socket is another's, which need not return at once when it is called back

	mu        sync.Mutex // guards what follows
	changed   sync.Cond  // so has paused, ended or accepting, or none of a kind is open
	paused    bool       // Accept waits
	pauses    int        // how often
	emptying  bool       // Accept does not wait yet, but until nobody comes
	ended     bool       // Accept fails
	ends      int        // how often it was ended or closed
	closed    bool       // so is the socket
	taking    int        // calls of CloseLast that are about to know what waits in the kernel
	backlog   []net.Conn // what did: Accept brings it before it fails
	accepting int        // calls of Accept that may still bring a connection
	entries   map[*Entry]bool
	open      [kinds]int // of each kind
}

// An Entry is one connection in the list. Embed it in the connection.
type Entry struct {
	Conn any // whatever the owner wants to find by it

	since time.Time
	kind  Kind // guarded by the listener's mu
}

// A Kind is what a connection speaks.
type Kind uint8

const (
	HTTP1 Kind = iota // or nothing yet
	HTTP2
	Hijacked
	kinds
)

// A Pauser ends a call of Accept by a deadline, as (*net.TCPListener).SetDeadline.
type Pauser interface{ SetDeadline(time.Time) error }

// New returns a Listener that accepts from socket.
func New(socket net.Listener) *Listener {
	pauser, _ := socket.(Pauser)
	l := &Listener{socket: socket, pauser: pauser, entries: map[*Entry]bool{}}
	l.changed.L = &l.mu
	return l
}

// NewWrapped returns a Listener that accepts from a wrapper around what is paused by
// pauser, unless that is nil or says that it is errors.ErrUnsupported.
func NewWrapped(wrapper net.Listener, pauser Pauser) *Listener {
	l := New(wrapper)
	l.wraps = true
	l.pauser = pauser
	if pauser != nil && errors.Is(pauser.SetDeadline(time.Time{}), errors.ErrUnsupported) {
		l.pauser = nil
	}
	return l
}

// Accept waits for a connection. While the listener is paused it waits for Resume;
// when it is ended or closed it returns net.ErrClosed. The caller must list each
// connection that it gets with Admit: until then it counts as on its way.
func (l *Listener) Accept() (net.Conn, error) {
	l.mu.Lock()
	ends := l.ends
	over := func() bool { return l.ended || l.ends != ends } // though it may have been reopened
	l.mu.Unlock()
	for {
		l.mu.Lock()
		for l.taking > 0 || len(l.backlog) == 0 && l.paused && !l.emptying && !over() {
			l.changed.Wait()
		}
		if len(l.backlog) > 0 {
			c := l.backlog[0]
			l.backlog = l.backlog[1:]
			l.accepting++
			l.mu.Unlock()
			return c, nil
		}
		if over() {
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
		again := l.taking > 0 || len(l.backlog) > 0 || (l.paused || ours) && !over()
		if over() {
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
	l.changed.Broadcast()
}

// Add lists a connection that came by another way than Accept.
func (l *Listener) Add(e *Entry) {
	l.mu.Lock()
	l.add(e)
	l.mu.Unlock()
}

func (l *Listener) add(e *Entry) {
	e.since = time.Now()
	l.entries[e] = true
	l.open[e.kind]++
}

// Remove takes a connection off the list, and reports whether it was on it.
func (l *Listener) Remove(e *Entry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.entries[e] {
		return false
	}
	delete(l.entries, e)
	l.leave(e.kind)
	return true
}

// SetKind notes what a listed connection speaks from now on.
func (l *Listener) SetKind(e *Entry, k Kind) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.entries[e] {
		l.open[k]++
		l.leave(e.kind)
		e.kind = k
	}
}

func (l *Listener) leave(k Kind) {
	l.open[k]--
	if l.open[k] == 0 {
		l.changed.Broadcast()
	}
}

// Count returns how many connections are open, and since when the oldest is.
func (l *Listener) Count() Count {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := Count{Open: len(l.entries), HTTP2: l.open[HTTP2], Hijacked: l.open[Hijacked]}
	for e := range l.entries {
		c.Oldest = Earlier(c.Oldest, e.since)
	}
	return c
}

// Entries returns those that are listed now, in the order in which they came.
func (l *Listener) Entries() []*Entry {
	l.mu.Lock()
	all := slices.Collect(maps.Keys(l.entries))
	l.mu.Unlock()
	slices.SortFunc(all, func(a, b *Entry) int { return a.since.Compare(b.since) })
	return all
}

// Pause stops accepting without closing the socket, which goes on queueing
// connections in the kernel. It reports whether that is possible: one without
// SetDeadline cannot be called back from its Accept. When Pause returns true, all
// that was accepted is listed, unless a wrapper holds it up.
func (l *Listener) Pause() bool { return l.pauseAfter(0) }

// PauseEmpty is Pause when nobody has been waiting in the kernel for a moment, for a
// wrapper: what waits there has to come through it.
func (l *Listener) PauseEmpty() bool { return l.pauseAfter(emptyTime) }

func (l *Listener) pauseAfter(more time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.pause(time.Now().Add(more)) {
		return false
	}
	l.emptying = more > 0
	l.changed.Broadcast()
	l.awaitPause(more + WrapperTimeout)
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
	ctx := context.Background()
	if l.wraps {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	l.await(ctx, func() bool { return !l.paused || l.ended || l.accepting == 0 && !l.emptying })
}

// End stops accepting as Pause does, and lets Accept return net.ErrClosed.
func (l *Listener) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pause(time.Now())
	l.ended = true
	l.ends++
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
// Resume too. It does not wait for connections, though a wrapper's own Close may, which then
// goes on. Only the first call closes; later ones return nil.
func (l *Listener) Close() error {
	l.mu.Lock()
	first, socket := !l.closed, l.socket
	l.ended, l.closed = true, true
	l.ends++
	l.changed.Broadcast()
	l.mu.Unlock()
	if !first {
		return nil
	}
	if !l.wraps {
		unlinkMu.Lock()
		defer unlinkMu.Unlock()
		return socket.Close()
	}
	closed := make(chan error, 1)
	go func() { closed <- socket.Close() }()
	select {
	case err := <-closed:
		return err
	case <-time.After(WrapperTimeout):
		return nil
	}
}

// CloseLast is Close by the last process that accepts: Accept brings what the kernel has
// completed before it fails, unless that has to come through a wrapper. What nobody has
// accepted within a second is closed, unless a connection is open whose loop may come back.
// Alone says that no other process has the socket open.
func (l *Listener) CloseLast(alone bool) (err error) {
	if l.wraps {
		return l.Close()
	}
	l.mu.Lock()
	l.taking++
	l.mu.Unlock()
	conns := l.takeBacklog(alone, func() { err = l.Close() })
	l.mu.Lock()
	l.taking--
	l.backlog = append(l.backlog, conns...)
	l.changed.Broadcast()
	l.mu.Unlock()
	if len(conns) > 0 {
		time.AfterFunc(backlogTime, func() { l.dropBacklog(false) })
	}
	return err
}

// dropBacklog closes what nobody comes for: while a connection is open, its loop may come
// back when it is closed.
func (l *Listener) dropBacklog(wasOpen bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	open := l.open[HTTP1]+l.accepting > 0 // others may wait for the end of those, and of the backlog
	if (open || wasOpen) && len(l.backlog) > 0 {
		time.AfterFunc(backlogTime, func() { l.dropBacklog(open) })
		return
	}
	for _, c := range l.backlog {
		c.Close()
	}
	l.backlog = nil
	l.changed.Broadcast()
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
	defer l.mu.Unlock()
	return l.await(ctx, func() bool { return len(l.entries)+l.accepting == 0 && !l.arriving() })
}

// WaitFor waits until no connection of this kind is open, nor comes in without a wrapper,
// or returns ctx.Err().
func (l *Listener) WaitFor(ctx context.Context, k Kind) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.await(ctx, func() bool { return l.open[k] == 0 && !l.arriving() })
}

// arriving reports whether CloseLast has brought what is not listed yet. The caller holds
// l.mu.
func (l *Listener) arriving() bool {
	return l.taking > 0 || len(l.backlog) > 0 || l.closed && !l.wraps && l.accepting > 0
}

// await waits until something is true that changed tells of. The caller holds l.mu.
func (l *Listener) await(ctx context.Context, done func() bool) error {
	defer context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.changed.Broadcast()
	})()
	for !done() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		l.changed.Wait()
	}
	return nil
}

// FileConn is net.FileConn of what was accepted, or an error if its client has reset it:
// nobody can be answered.
func FileConn(f *os.File) (net.Conn, error) {
	c, err := net.FileConn(f)
	if err == nil && c.RemoteAddr() == nil {
		c.Close()
		return nil, net.ErrClosed
	}
	return c, err
}
