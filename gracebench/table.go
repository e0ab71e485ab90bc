package main

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

const rowFormat = "%-10s %9v %8v %5v %9v %8v %7v  %-16s %8v %9v\n"

func tableHead(cfg config) string {
	return fmt.Sprintf("%d clients that never retry; %s/%s, %d processors. Times in ms. More: go doc ./gracebench\n\n",
		cfg.clients, runtime.GOOS, runtime.GOARCH, runtime.NumCPU()) +
		fmt.Sprintf(rowFormat, "", "", "", "", "new", "", "", "in a restart", "first", "") +
		fmt.Sprintf(rowFormat, "kind", "requests", "restarts", "lost", "conns", "resumed", "p99", "× (95 %)", "answer", "old gone")
}

func (r *row) text() string {
	if r.Skipped != "" {
		return fmt.Sprintf("%-10s skipped: %s\n", r.Kind, r.Skipped)
	}
	newConns := "-"
	if r.Limit >= 0 {
		newConns = fmt.Sprintf("%.1f", float64(r.NewConns)/float64(max(r.Restarts, 1)))
	}
	var b strings.Builder
	fmt.Fprintf(&b, rowFormat, r.Kind, thousands(r.Requests), r.Restarts, r.Lost, newConns, cmp.Or(r.Resumed, "-"),
		r.Before.P99, r.ratio(), r.FirstAnswer.p50(), r.Gone.p50())
	b.WriteString(r.losses())
	for _, failure := range r.Failures {
		fmt.Fprintf(&b, "  FAILED: %s\n", failure)
	}
	if r.Log != "" {
		fmt.Fprintf(&b, "  the end of the server's log:\n    %s\n", strings.ReplaceAll(r.Log, "\n", "\n    "))
	}
	return b.String()
}

// losses says what was lost, a line for each kind of error.
func (r *row) losses() string {
	var b strings.Builder
	for _, what := range slices.SortedFunc(maps.Keys(r.LostBy), func(x, y string) int {
		return cmp.Or(cmp.Compare(r.LostBy[y], r.LostBy[x]), cmp.Compare(x, y))
	}) {
		fmt.Fprintf(&b, "%35d lost: %s\n", r.LostBy[what], what)
	}
	return b.String()
}

func (s summary) p50() string {
	if s.Max == 0 {
		return "-"
	}
	return s.P50.String()
}

func (r *row) ratio() string {
	if r.Ratio.Median == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f (%.2f-%.2f)", r.Ratio.Median, r.Ratio.Low, r.Ratio.High)
}

// verdict is the last line: what was lost in all rows.
func verdict(rows []*row) string {
	var all row
	for _, r := range rows {
		all.Requests += r.Requests
		all.Restarts += r.Restarts
		all.Lost += r.Lost
	}
	if all.Lost == 0 {
		return fmt.Sprintf("nothing lost: %s requests, %s restarts", thousands(all.Requests), thousands(all.Restarts))
	}
	return fmt.Sprintf("%s of %s requests lost in %s restarts", thousands(all.Lost), thousands(all.Requests), thousands(all.Restarts))
}

// thousands writes 1234567 as 1,234,567.
func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// A progress is the line at the bottom of a terminal that says how far a run has come. Nil shows nothing.
type progress struct {
	mu   sync.Mutex
	what string
	say  func() string // how far it is
	end  time.Time     // when all is expected to be done
	quit chan struct{}
}

// newProgress returns nil unless standard output is a terminal, and text is what it is for.
func newProgress(cfg config) *progress {
	if s, err := os.Stdout.Stat(); cfg.json || err != nil || s.Mode()&os.ModeCharDevice == 0 {
		return nil
	}
	p := &progress{quit: make(chan struct{})}
	go func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.show()
			case <-p.quit:
				return
			}
		}
	}()
	return p
}

func (p *progress) show() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.say == nil {
		return
	}
	left := max(0, time.Until(p.end)).Round(time.Second)
	fmt.Printf("\r\x1b[K%s: %s, %d:%02d left", p.what, p.say(), int(left.Minutes()), int(left.Seconds())%60)
}

// follow shows what say says of it from now on.
func (p *progress) follow(what string, left time.Duration, say func() string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what, p.say, p.end = what, say, time.Now().Add(left)
}

// pause takes the line away, so that other lines can be written, until follow is called again.
func (p *progress) pause() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.say != nil {
		fmt.Print("\r\x1b[K")
	}
	p.say = nil
}

func (p *progress) close() {
	if p != nil {
		p.pause()
		close(p.quit)
	}
}
