package gracehttp

import (
	"context"
	"errors"
	"hash/maphash"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/handoff"
)

// A drain is the time from the end of accepting to the server's end, or until
// the successor fails. It decides about each connection that is idle.
type drain struct {
	server   *server
	stop     bool        // there is no successor
	deadline time.Time   // of the drain, or zero
	hurry    time.Time   // when three quarters of it are over, or zero: then nothing idle is waited for
	mover    *mover      // nil: connections are finished here
	refused  atomic.Bool // so they are, since the successor has not taken some

	// notice is given at the start, and again when the successor has refused
	// connections.
	notice atomic.Pointer[notice]
}

// A notice asks the clients of what cannot move to open new connections. All at
// once would do so at the same time, and each wait for all others' handshakes: so
// one is told after the other.
type notice struct {
	begin  time.Time
	spread time.Duration // the last is told this long after the first
}

// freshGrace is how long after its accept a connection is taken for one on which
// a request is about to come, even if nobody serves after us.
const freshGrace = time.Second

// Drain stops accepting, and returns when nothing is open any more.
func (s *server) Drain(ctx context.Context, how handoff.Drain) error {
	to := how.To
	s.movedAway.Store(0)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &drain{server: s, stop: to == nil}
	if deadline, ok := ctx.Deadline(); ok {
		d.deadline = deadline
		d.hurry = deadline.Add(-time.Until(deadline) / 4)
		defer time.AfterFunc(time.Until(d.hurry), d.hurryUp).Stop()
	}

	// No new connections. Those that the kernel has accepted already are served
	// by the successor, or by the process that systemd starts next; if there is
	// neither, here.
	s.gate.Pause()
	moves := to != nil && !s.tls && to.Moves()
	d.give(moves)
	if moves {
		d.mover = newMover(func(c []syscall.Conn) error {
			err := to.Move(s.socket, c, d.answerTime())
			if err == nil {
				s.movedAway.Add(int64(len(c)))
			}
			return err
		})
	} else {
		// What our predecessor still holds, it finishes.
		handoff.Self().Receive(s.socket, nil)
	}
	s.draining.Store(d)
	if d.stop {
		if !handoff.Self().Activated(s.socket) {
			for _, c := range s.gate.Backlog() {
				wrapped, core := s.wrap(c)
				s.admit(core, s.gate.Add)
				s.inject(wrapped)
			}
		}
		s.gate.Close()
	}

	// Idle connections move, or end after the grace time.
	if d.mover != nil {
		go d.move(ctx)
	} else {
		d.kickAll()
		d.kickAfterGrace()
	}
	if d.stop {
		time.AfterFunc(freshGrace, d.kickAll)
	}
	if err := d.waitHTTP1(ctx); err != nil {
		return err
	}

	// What is left is hijacked or HTTP/2.
	if err := d.waitHTTP2(ctx); err != nil {
		return err
	}
	s.shutdown(ctx)
	return s.gate.Wait(ctx)
}

// waitHTTP1 waits until no HTTP/1 connection is open, nor can still arrive from
// our predecessor.
func (d *drain) waitHTTP1(ctx context.Context) error {
	var gone <-chan struct{}
	if d.mover != nil {
		gone = handoff.Self().Predecessor.Drained()
	}
	for gone != nil || d.server.http1.Load() > 0 {
		select {
		case <-gone:
			gone = nil
		case <-d.server.changed:
		case <-ctx.Done():
			if d.server.http1.Load() == 0 && ctx.Err() == context.DeadlineExceeded {
				return nil // it is only the predecessor that takes longer
			}
			return ctx.Err()
		}
	}
	return nil
}

// kickAll makes every idle connection look whether to end.
func (d *drain) kickAll() {
	for _, e := range d.server.gate.Entries() {
		e.Conn.(*conn).kick()
	}
}

// hurryUp leaves the rest of the time to what is under way. What our predecessor still
// holds, it finishes.
func (d *drain) hurryUp() {
	handoff.Self().Receive(d.server.socket, nil)
	d.kickAll()
}

// late reports whether that time has come.
func (d *drain) late() bool { return !d.hurry.IsZero() && !time.Now().Before(d.hurry) }

// kickAfterGrace does so when the grace time is over.
func (d *drain) kickAfterGrace() { time.AfterFunc(d.server.app.idleGrace, d.kickAll) }

// moves reports whether connections go to the successor.
func (d *drain) moves() bool { return d.mover != nil && !d.refused.Load() }

// give gives notice: to all but hijacked connections, or only to those of HTTP/2,
// which do not move.
func (d *drain) give(http2Only bool) {
	n := &notice{begin: time.Now()}
	// Connections over unix sockets cannot be told apart by their addresses.
	if a := d.server.app; !d.stop && d.server.Addr().Network() == "tcp" {
		count := d.server.http2.Load()
		if !http2Only {
			count += d.server.http1.Load()
		}
		n.spread = min(time.Duration(count)*a.spreadEach, a.idleGrace)
		if !d.deadline.IsZero() {
			// The last one's requests need time as well, and it may be idle for the
			// grace time once more.
			left := d.deadline.Sub(n.begin)
			n.spread = max(0, min(n.spread, left/4, (left-a.idleGrace)/2))
		}
	}
	d.notice.Store(n)
}

// tells reports whether an answer is to say that the connection takes no more
// requests.
func (d *drain) tells(r *http.Request) bool {
	if r.ProtoMajor == 1 && d.moves() || upgrades(r) {
		return false
	}
	n := d.notice.Load()
	return time.Since(n.begin) >= n.turn(r.RemoteAddr)
}

// turn returns when a connection's client is told, always the same for one.
func (n *notice) turn(remote string) time.Duration {
	if n.spread <= 0 {
		return 0
	}
	return time.Duration(maphash.String(turns, remote) % uint64(n.spread))
}

var turns = maphash.MakeSeed()

// waitHTTP2 lets requests on HTTP/2 connections go on until all clients were told:
// what follows tells those at once that have not asked for anything since.
func (d *drain) waitHTTP2(ctx context.Context) error {
	n := d.notice.Load()
	told := time.NewTimer(time.Until(n.begin.Add(n.spread)))
	defer told.Stop()
	for n.spread > 0 && d.server.http2.Load() > 0 {
		select {
		case <-d.server.changed:
		case <-told.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// move hands connections to the successor. If it takes no more, they are finished here.
func (d *drain) move(ctx context.Context) {
	err := d.mover.run(ctx, d.server.gate.Entries())
	if errors.Is(err, handoff.ErrGone) {
		// If it has crashed, that is about to be seen, and the drain to be called off.
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	if err == nil || ctx.Err() != nil {
		return
	}
	d.server.app.logf("%s: the successor takes no connections: %v; finishing them here", d.server.Addr(), err)
	d.give(false)
	d.refused.Store(true)
	d.kickAfterGrace()
}

// answerTime returns how long the successor may take to answer: connections wait for
// that, and if there is no answer they need time to be finished here.
func (d *drain) answerTime() time.Duration {
	const enough = 3 * time.Second
	if d.deadline.IsZero() {
		return enough
	}
	return min(enough, time.Until(d.deadline)/4)
}

// patience returns until when an idle connection is left open for its client's
// next request. The caller holds c.mu.
func (d *drain) patience(c *conn) time.Time {
	since := d.notice.Load().begin
	if c.since.After(since) {
		since = c.since
	}
	switch {
	case d.late():
		return time.Time{}
	case !d.stop || c.handshaking():
		return since.Add(d.server.app.idleGrace)
	case c.is(fresh) && !c.parked():
		return c.entry.Since().Add(freshGrace)
	default:
		return time.Time{}
	}
}
