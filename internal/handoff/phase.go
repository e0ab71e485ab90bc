package handoff

import "time"

// A Phase is what this process does, as whoever owns restarts sees it.
type Phase int32

const (
	Opening    Phase = iota // not serving yet
	Serving                 // alone
	Restarting              // serving, while a successor starts
	LameDuck                // serving, but about to stop
	Draining                // a successor serves
	Standby                 // so it does; drained, and able to take over again
	Stopping                // nobody serves after us
)

// String is its name for people and programs.
func (p Phase) String() string {
	return [...]string{"starting", "serving", "restarting", "lame duck", "draining", "standby", "stopping"}[p]
}

// Ready reports whether clients should come, to this process or a successor.
func (p Phase) Ready() bool { return p != Opening && p != LameDuck && p != Stopping }

// HasSuccessor reports whether a successor serves.
func (p Phase) HasSuccessor() bool { return p == Draining || p == Standby }

// Phase returns what this process does.
func (g *Generation) Phase() Phase { return Phase(g.phase.Load()) }

// SetPhase is for the owner of restarts.
func (g *Generation) SetPhase(p Phase) { g.phase.Store(int32(p)) }

// A Drain is how a drain is to be.
type Drain struct {
	To      *Successor // nil at a stop
	Quick   bool       // nobody idle is to be waited for
	OnPause func()     // called once, when nothing is accepted any more; or nil
}

// Paused says that nothing is accepted any more.
func (d Drain) Paused() {
	if d.OnPause != nil {
		d.OnPause()
	}
}

// Restarted is the outcome of a restart.
type Restarted struct {
	Pid  int // 0 if no successor was started
	At   time.Time
	Took time.Duration
	Err  error
}

// Restarted notes the outcome of the last restart.
func (g *Generation) Restarted(r Restarted) { g.last.Store(&r) }

// LastRestart returns it; its time is zero if there was none.
func (g *Generation) LastRestart() Restarted {
	if last := g.last.Load(); last != nil {
		return *last
	}
	return Restarted{}
}
