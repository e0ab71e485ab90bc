package accept

import "time"

// A Count is what a listener has open, and what became of the connections that a drain
// has dealt with.
type Count struct {
	Open     int       // connections of all kinds
	Oldest   time.Time // since when the oldest of them is open
	HTTP2    int       // of them, those that speak HTTP/2
	Hijacked int       // of them, those that a handler has taken over

	// Since the drain began.
	Moved int // to the successor
	Told  int // ended after an answer that said so, or by their client after it
	Idle  int // closed while no request was under way
	Cut   int // closed at the end of the drain timeout, or at a second signal
}

// Add adds what another listener has.
func (c *Count) Add(d Count) {
	c.Oldest = Earlier(c.Oldest, d.Oldest)
	c.Open += d.Open
	c.HTTP2 += d.HTTP2
	c.Hijacked += d.Hijacked
	c.Moved += d.Moved
	c.Told += d.Told
	c.Idle += d.Idle
	c.Cut += d.Cut
}

// Earlier returns the earlier of two times, of which zero is none.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
