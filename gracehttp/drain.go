package gracehttp

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/facebookgo/grace/internal/accept"
	"github.com/facebookgo/grace/internal/handoff"
)

// stopGrace is how long an idle connection stays open at a stop. Nobody comes after us
// but its client may be sending a request: the answer tells it to go elsewhere.
const stopGrace = time.Second

// A drain is the time from the end of accepting to the server's end, or until
// the successor fails. A lame duck is the time before a stop's. It says when clients are
// told, and until when an idle connection stays.
type drain struct {
	server         *server
	lameDuck       bool
	stop           bool // there is no successor
	quick          bool // nobody idle is waited for
	closesHijacked bool // after their grace, since nobody tells their owners
	hijackGrace    time.Duration
	grace          time.Duration // how long an idle connection stays
	begin          time.Time
	deadline       time.Time // of the drain, or zero
	idleEnd        time.Time // when three quarters of it are over, or zero: nothing idle stays longer
	middle         time.Time // from then on, those are told, too, that should have moved, or never are idle

	mover   *mover      // nil: connections are finished here
	refused atomic.Bool // so they are, since the successor has not taken some

	// pace is set at the start, and again when the successor has refused connections.
	pace atomic.Pointer[pace]
}

// A pace makes the clients of what cannot move leave one after the other: all at once
// would open their new connections at the same time, and each wait for all others'
// handshakes. Each connection has a place.
type pace struct {
	places   atomic.Uint32 // given
	told     turns         // when answers tell clients that ask
	idleFrom time.Time     // when the others' connections are ended
	idle     time.Duration // apart
	last     uint32        // those that come later share the last place
}

// turns are points in time, one after the other.
type turns struct {
	from time.Time
	each time.Duration
}

func (t turns) at(place uint32) time.Time { return t.from.Add(time.Duration(place) * t.each) }

// newPace lets all that is open, or only HTTP/2, which does not move, leave.
func (d *drain) newPace(http2Only bool) {
	s, now := d.server, time.Now()
	open := s.listener.Count()
	leaving := open.HTTP2
	if !http2Only {
		leaving = open.Open - open.Hijacked
	}
	count := time.Duration(max(1, leaving))
	p := &pace{told: turns{from: now}, idleFrom: now.Add(d.grace), last: uint32(count - 1)}
	var each time.Duration
	if rate := s.app.drainRate; rate > 0 && !d.quick && s.Addr().Network() == "tcp" {
		each = time.Second / time.Duration(rate)
	}
	switch {
	case d.lameDuck:
		p.told.each = min(each, d.deadline.Sub(now)/2/count)
	case d.stop:
		p.idle = min(each, d.grace/count)
	case d.idleEnd.IsZero():
		p.told.each, p.idle = each, each
	default:
		// The last that is told needs time as well, and so do idle connections: those
		// that would stay for longer than that have less.
		left := max(0, d.idleEnd.Sub(now))
		p.told.each = min(each, left*2/3/count)
		p.idle = p.told.each
		p.idleFrom = accept.Earlier(p.idleFrom, d.idleEnd.Add(-p.idle*count))
	}
	d.pace.Store(p)
}

// placeOf returns a connection's place, always the same. The caller holds c.mu.
func (p *pace) placeOf(c *conn) uint32 {
	if c.pace != p {
		c.pace, c.place = p, min(p.places.Add(1)-1, p.last)
	}
	return c.place
}

// expiry returns until when an idle connection is left open for its client's next
// request. The caller holds c.mu.
func (d *drain) expiry(c *conn) time.Time {
	p := d.pace.Load()
	until := turns{p.idleFrom, p.idle}.at(p.placeOf(c))
	own := d.begin
	if c.since.After(own) { // its client was not told
		own = c.since.Add(d.grace)
	}
	if c.handshaking() && !d.quick { // its request is about to come
		own = own.Add(d.server.app.idleGrace)
	}
	if own.After(until) {
		until = own
	}
	return accept.Earlier(until, d.idleEnd)
}

// tells reports whether an answer is to say that the connection takes no more
// requests.
func (d *drain) tells(r *http.Request) bool {
	now := time.Now()
	early := r.ProtoMajor == 1 && now.Before(d.middle)
	c := connOf(r)
	if early && d.moves() && (c == nil || !c.wrapped) {
		return false
	}
	if c == nil {
		return true
	}
	if early && c.hasInput() {
		return false // the next request is here: it is answered, too
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := d.pace.Load()
	if now.Before(p.told.at(p.placeOf(c))) {
		return false
	}
	if !c.closing {
		c.closing = true
		c.server.note(accept.Count{Told: 1})
	}
	return true
}

// moves reports whether connections go to the successor.
func (d *drain) moves() bool { return d.mover != nil && !d.refused.Load() }

// LameDuck begins the time before a stop, of length d: the server accepts and serves
// on, and closes nothing. Each answer tells its client to end from its turn on; all are
// told after half of d.
func (s *server) LameDuck(length time.Duration) {
	now := time.Now()
	d := &drain{server: s, lameDuck: true, begin: now, deadline: now.Add(length)}
	d.newPace(false)
	s.begin(d)
}

// begin lets a drain be the one that decides.
func (s *server) begin(d *drain) {
	if s.draining.Load() == nil {
		s.mu.Lock()
		s.ended = accept.Count{}
		s.mu.Unlock()
	}
	s.draining.Store(d)
}

// Drain stops accepting, and returns when nothing is open any more.
func (s *server) Drain(ctx context.Context, how handoff.Drain) error {
	return s.drain(ctx, how, how.To == nil || !how.To.Keeps(s.socket))
}

// drain is Drain, by the last process that serves the listening socket or not.
func (s *server) drain(ctx context.Context, how handoff.Drain, last bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := s.newDrain(ctx, how)

	// No new connections. Those that the kernel has accepted already are served
	// by the successor, or by the process that systemd starts next; if there is
	// neither, here.
	activated := handoff.Self().Activated(s.socket)
	pause := s.listener.Pause
	if last && !activated && !s.plain {
		pause = s.listener.PauseEmpty
	}
	if !pause() {
		s.closeSocket(false)
	}
	how.Paused()
	moves := !last && !s.tls && how.To.Moves()
	d.newPace(moves && s.plain)
	if moves {
		d.mover = newMover(func(c []syscall.Conn, w []handoff.Waiting) error {
			return how.To.Move(s.socket, c, w, d.answerTime())
		})
	} else {
		s.refuse()
	}
	s.begin(d)
	if last && !activated || d.stop {
		s.closeSocket(!activated)
	}
	if !d.idleEnd.IsZero() {
		defer time.AfterFunc(time.Until(d.idleEnd), d.endIdle).Stop()
	}

	err := d.wait(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		left := s.listener.Count()
		s.note(accept.Count{Cut: left.Open})
		if d.stop && left.Open == left.Hijacked {
			err = nil // these are closed when the process ends
		}
	}
	return err
}

func (s *server) newDrain(ctx context.Context, how handoff.Drain) *drain {
	now := time.Now()
	d := &drain{
		server: s,
		stop:   how.To == nil,
		quick:  how.Quick,
		grace:  s.app.idleGrace,
		begin:  now,
		middle: now.Add(defaultDrainTimeout / 2),
	}
	was := s.draining.Load()
	switch {
	case how.Quick:
		d.grace = 0
	case d.stop && (was == nil || !was.lameDuck):
		d.grace = min(d.grace, stopGrace)
	}
	if deadline, ok := ctx.Deadline(); ok {
		left := deadline.Sub(now)
		d.deadline, d.idleEnd, d.middle = deadline, deadline.Add(-left/4), now.Add(left/2)
	}
	if d.stop {
		d.middle = accept.Earlier(d.middle, now.Add(d.grace))
	}
	if d.stop && !s.hasShutdownHook && len(s.app.onDrain) == 0 {
		d.closesHijacked = true
		if !how.Quick {
			d.hijackGrace = s.app.idleGrace
		}
	}
	return d
}

// wait returns when nothing is open any more.
func (d *drain) wait(ctx context.Context) error {
	// Idle connections move, or end after the grace time.
	if d.mover != nil {
		go d.move(ctx)
	} else {
		d.wakeAll()
	}
	for _, e := range d.server.listener.Entries() {
		c := e.Conn.(*conn)
		c.mu.Lock()
		c.expireHijacked()
		c.mu.Unlock()
	}
	if err := d.waitHTTP1(ctx); err != nil {
		return err
	}

	// What is left is hijacked or HTTP/2.
	if err := d.waitHTTP2(ctx); err != nil {
		return err
	}
	d.server.shutdown(ctx)
	return d.server.listener.Wait(ctx)
}

// waitHTTP1 waits until no HTTP/1 connection is open, nor can still arrive from
// our predecessor.
func (d *drain) waitHTTP1(ctx context.Context) error {
	if d.mover != nil {
		select {
		case <-handoff.Self().Predecessor.Drained():
		case <-ctx.Done():
			if ctx.Err() != context.DeadlineExceeded {
				return ctx.Err()
			}
			// It may be only the predecessor that takes longer.
		}
	}
	return d.server.listener.WaitFor(ctx, accept.HTTP1)
}

// waitHTTP2 lets requests on HTTP/2 connections go on until all clients were told:
// what follows tells those at once that have not asked for anything since.
func (d *drain) waitHTTP2(ctx context.Context) error {
	p := d.pace.Load()
	all, cancel := context.WithDeadline(ctx, p.told.at(p.last+1))
	defer cancel()
	if d.server.listener.WaitFor(all, accept.HTTP2) == nil {
		return nil
	}
	return ctx.Err()
}

// wakeAll makes every idle connection decide whether to end.
func (d *drain) wakeAll() {
	for _, e := range d.server.listener.Entries() {
		e.Conn.(*conn).wake()
	}
}

// endIdle leaves the rest of the time to what is under way. What our predecessor still
// holds, it finishes.
func (d *drain) endIdle() {
	d.server.refuse()
	d.wakeAll()
}

// move hands connections to the successor. If it takes no more, they are finished here.
func (d *drain) move(ctx context.Context) {
	err := d.mover.run(ctx, d.server.listener.Entries)
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
	d.newPace(false)
	d.refused.Store(true)
	d.wakeAll()
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

// note adds to what became of connections since the drain began.
func (s *server) note(c accept.Count) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended.Add(c)
}

// Count returns what is open, and what became of the rest in this drain.
func (s *server) Count() accept.Count {
	c := s.listener.Count()
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Add(s.ended)
	return c
}
