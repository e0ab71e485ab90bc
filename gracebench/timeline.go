package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
)

const (
	timelineClients = 16
	timelinePause   = 12 * time.Millisecond  // at most, between two requests of a client
	timelineSlow    = 150 * time.Millisecond // at most, for which the handler waits
	timelineFrom    = -200 * time.Millisecond
	timelineTo      = 600 * time.Millisecond
)

// A timeline is one restart, request by request. Times are from the signal.
type timeline struct {
	name     string
	marks    []mark
	oldPid   string
	first    time.Duration // answer of the new process
	gone     time.Duration // end of the old one
	newConns int
}

// A mark is one request.
type mark struct {
	client int
	sample
	pid string // of the process that answered; "" if none did
}

func (l *timeline) lost() (n int) {
	for _, m := range l.marks {
		if m.pid == "" {
			n++
		}
	}
	return n
}

// benchTimeline draws one restart of this library and, below it, one by net/http's recipe.
func benchTimeline(ctx context.Context, cfg config, file string) error {
	ours, err := recordTimeline(ctx, cfg, "grace: open connections move")
	if err != nil {
		return err
	}
	program, err := buildPeer(ctx, "nethttp")
	if err != nil {
		return fmt.Errorf("net/http's recipe %w", err)
	}
	defer os.Remove(program)
	cfg.peer = program + " {addr}"
	theirs, err := recordTimeline(ctx, cfg, "net/http: Shutdown, then start anew")
	if err != nil {
		return err
	}
	picture := drawTimelines(ours, theirs)
	if len(picture) > 200_000 {
		return fmt.Errorf("the picture has %d bytes, more than 200,000", len(picture))
	}
	if err := os.WriteFile(file, []byte(picture), 0o666); err != nil {
		return err
	}
	for _, l := range []*timeline{ours, theirs} {
		fmt.Printf("%s. %d of %s requests lost.\n", l.numbers(), l.lost(), thousands(len(l.marks)))
	}
	if n := ours.lost(); n > 0 {
		return fmt.Errorf("%d requests lost", n)
	}
	return nil
}

func (l *timeline) numbers() string {
	name, _, _ := strings.Cut(l.name, ":")
	return fmt.Sprintf("%s: the new process answered after %d ms, the old one ended after %d ms; %d new connections",
		name, l.first.Milliseconds(), l.gone.Milliseconds(), l.newConns)
}

// recordTimeline restarts a server under clients that keep their connections, and send nothing twice.
func recordTimeline(ctx context.Context, cfg config, name string) (*timeline, error) {
	t, err := startTarget(ctx, cfg, serverConfig{addr: "127.0.0.1:0", proto: "http", listeners: 1})
	if err != nil {
		return nil, err
	}
	defer t.stop(ctx)
	load, end := context.WithCancel(ctx)
	defer end()
	clients := make([]*rawClient, timelineClients)
	marks := make([][]mark, len(clients))
	e := &env{network: t.network(), addr: t.addr}
	var running sync.WaitGroup
	for i := range clients {
		c := &rawClient{dial: e.dial}
		clients[i] = c
		defer c.close()
		running.Add(1)
		go func() {
			defer running.Done()
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for load.Err() == nil {
				q := request{body: fmt.Sprintf("client %d request %d\n", i, len(marks[i]))}
				if rnd.IntN(16) == 0 {
					q.wait = time.Duration(rnd.Int64N(int64(timelineSlow)))
				}
				a, err := c.do(q)
				m := mark{client: i, sample: sample{a.sent, now()}}
				if err == nil {
					m.pid = a.pid
					t.answered(a.pid, m.ended)
				}
				marks[i] = append(marks[i], m)
				c.idle(time.Duration(rnd.Int64N(int64(timelinePause))))
			}
		}()
	}
	sleep(ctx, time.Second) // until all is warm
	old := t.newest.Load()
	if old == nil {
		return nil, t.withLog(fmt.Errorf("%s: no answer", name))
	}
	signal := now()
	r, err := t.restart(ctx)
	if err != nil {
		return nil, t.withLog(fmt.Errorf("%s: %w", name, err))
	}
	sleep(ctx, signal+timelineTo+timelineSlow-now())
	end()
	running.Wait()
	if ctx.Err() != nil {
		return nil, errors.New("interrupted")
	}
	l := &timeline{name: name, oldPid: fmt.Sprint(old.pid), first: r.firstAnswer, gone: r.gone}
	for i, c := range clients {
		l.newConns += c.dials() - 1
		for _, m := range marks[i] {
			m.began, m.ended = m.began-signal, m.ended-signal
			if m.ended >= timelineFrom && m.began <= timelineTo {
				l.marks = append(l.marks, m)
			}
		}
	}
	return l, nil
}

// The picture is laid out in units of a drawing that is 800 wide. A README shows it about that wide, a phone in half
// the width: then its texts are twice as large, and shorter.
const (
	drawWidth   = 800.0
	plotLeft    = 52.0
	plotRight   = 788.0
	lanePitch   = 8.0
	headHeight  = 64.0
	lanesHeight = lanePitch * timelineClients
	lanesGap    = 34.0
	timesHeight = 104.0
	panelHeight = headHeight + lanesHeight + lanesGap + timesHeight + 14
	panelsTop   = 90.0
)

const drawStyle = `
svg { font-family: -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", Helvetica, Arial, sans-serif; font-size: 13px; color-scheme: light dark }
.paper { fill: #ffffff; stroke: #d1d9e0 }
.text { fill: #1f2328 } .soft { fill: #59636e } .bad { fill: #c4121f }
.title { font-size: 20px; font-weight: 600 } .head { font-size: 16px; font-weight: 600 }
.grid { stroke: #e4e8ec; fill: none } .when { stroke: #1f2328; stroke-width: 1.5; fill: none } .gone { stroke-dasharray: 4 3 }
.old { stroke: #8c959f } .new { stroke: #0969da } .lost { stroke: #d1242f; stroke-width: 2.2; fill: none }
.lane { stroke-width: 5; fill: none } .dot { stroke-width: 2.6; stroke-linecap: round; fill: none }
.narrow { display: none }
@media (max-width: 600px) {
  svg { font-size: 24px } .title { font-size: 33px } .head { font-size: 27px } .axis { font-size: 20px }
  .wide { display: none } .narrow { display: inline }
}
@media (prefers-color-scheme: dark) {
  .paper { fill: #0d1117; stroke: #3d444d }
  .text { fill: #f0f6fc } .soft { fill: #9198a1 } .bad { fill: #ff7b72 }
  .grid { stroke: #252b33 } .when { stroke: #f0f6fc }
  .old { stroke: #767e89 } .new { stroke: #4493f8 } .lost { stroke: #ff6a60 }
}
`

func drawTimelines(ours, theirs *timeline) string {
	const title = "One restart, seen by 16 clients"
	about := fmt.Sprintf("%d clients keep their connections and send nothing twice; one request in sixteen takes up to %d ms.",
		timelineClients, timelineSlow.Milliseconds())
	const madeBy = "Made by go run ./gracebench -svg restart.svg"
	wide := []string{about, ours.numbers() + ".", theirs.numbers() + ".",
		fmt.Sprintf("%s/%s, %d processors. %s", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), madeBy)}
	narrow := []string{
		fmt.Sprintf("New process answers after %d and after %d ms.", ours.first.Milliseconds(), theirs.first.Milliseconds()),
		fmt.Sprintf("New connections: %d and %d.", ours.newConns, theirs.newConns),
		madeBy,
	}

	axis := panelsTop + 2*panelHeight
	height := axis + 48 + 20*float64(len(wide))
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" width="%g" height="%g" role="img" aria-labelledby="title about">`+"\n",
		drawWidth, height, drawWidth, height)
	fmt.Fprintf(&b, "<title id=\"title\">%s</title>\n<desc id=\"about\">%s</desc>\n<style>%s</style>\n", title, strings.Join(wide[:3], " "), drawStyle)
	fmt.Fprintf(&b, `<rect class="paper" x=".5" y=".5" width="%g" height="%g" rx="8"/>`+"\n", drawWidth-1, height-1)

	text(&b, 16, 34, "text title", title)
	// The legend: beside the title where there is room, else below it.
	legend := func(class string, x, y, scale float64, words ...string) {
		fmt.Fprintf(&b, `<g class="%s">`, class)
		for i, word := range words {
			mark := fmt.Sprintf(`<path class="lane %s" d="M%.0f %.0fh%.0f"/>`, []string{"old", "new"}[min(i, 1)], x, y-5*scale, 14*scale)
			if i == 2 {
				mark = fmt.Sprintf(`<path class="lost" d="%s"/>`, cross(x+7*scale, y-5*scale))
			}
			b.WriteString(mark)
			text(&b, x+20*scale, y, "soft", word)
			x += (34 + 7.2*float64(len(word))) * scale
		}
		b.WriteString("</g>\n")
	}
	legend("wide", 16, 60, 1, "answered by the old process", "answered by the new process", "lost")
	fmt.Fprintf(&b, `<text class="soft wide" text-anchor="end" x="%g" y="60">each line a client, each mark a request</text>`+"\n", plotRight)
	legend("narrow", 16, 74, 1.7, "old process", "new process", "lost")

	for i, l := range []*timeline{ours, theirs} {
		l.draw(&b, panelsTop+float64(i)*panelHeight)
	}
	for t := timelineFrom; t <= timelineTo; t += 200 * time.Millisecond {
		label, anchor := fmt.Sprintf("%d ms", t.Milliseconds()), "middle"
		switch t {
		case timelineFrom:
			anchor = "start"
		case timelineTo:
			anchor = "end"
		case 0:
			label = "signal"
		}
		label = strings.Replace(label, "-", "−", 1)
		fmt.Fprintf(&b, `<text class="soft" text-anchor="%s" x="%.0f" y="%.0f">%s</text>`+"\n", anchor, plotX(t), axis+18, label)
	}
	caption := func(class string, lines []string, pitch float64) {
		fmt.Fprintf(&b, `<g class="%s">`, class)
		for i, line := range lines {
			text(&b, 16, axis+50+pitch*float64(i), "soft", line)
		}
		b.WriteString("</g>\n")
	}
	caption("wide", wide, 19)
	caption("narrow", narrow, 30)
	b.WriteString("</svg>\n")
	return b.String()
}

// draw draws one panel: the clients' lanes, and below them the response times on a logarithmic scale.
func (l *timeline) draw(b *strings.Builder, top float64) {
	lanes, times := top+headHeight, top+headHeight+lanesHeight+lanesGap
	bottom := times + timesHeight
	y := func(d time.Duration) float64 {
		const lowest, highest = -1.5, 2.5 // logarithms of 0.03 and 316 ms
		at := math.Log10(max(d.Seconds()*1e3, 0.01))
		return bottom - timesHeight*(min(max(at, lowest), highest)-lowest)/(highest-lowest)
	}

	text(b, 16, top+26, "text head", l.name)
	outcome := "text"
	if l.lost() > 0 {
		outcome = "bad"
	}
	result := func(class, words string) {
		fmt.Fprintf(b, `<text class="%s head %s" text-anchor="end" x="%g" y="%.0f">%s</text>`+"\n", outcome, class, plotRight, top+26, words)
	}
	result("wide", fmt.Sprintf("%d of %s requests lost", l.lost(), thousands(len(l.marks))))
	result("narrow", fmt.Sprintf("%d lost", l.lost()))

	var grid strings.Builder
	for t := timelineFrom; t <= timelineTo; t += 100 * time.Millisecond {
		fmt.Fprintf(&grid, "M%.1f %.0fV%.0fM%.1f %.0fV%.0f", plotX(t), lanes, lanes+lanesHeight, plotX(t), times, bottom)
	}
	for _, d := range []time.Duration{time.Millisecond / 10, time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond} {
		fmt.Fprintf(&grid, "M%g %.1fH%g", plotLeft, y(d), plotRight)
		fmt.Fprintf(b, `<text class="soft axis" text-anchor="end" x="%g" y="%.1f">%g</text>`+"\n", plotLeft-6, y(d)+5, d.Seconds()*1e3)
	}
	fmt.Fprintf(b, `<path class="grid" d="%s"/>`+"\n", grid.String())
	text(b, plotLeft, times-8, "soft", "response time, ms")

	var bars, dots [2]strings.Builder // by process: old, new
	var lost strings.Builder
	for _, m := range l.marks {
		lane := lanes + lanePitch*(float64(m.client)+0.5)
		which := 1
		switch m.pid {
		case "":
			lost.WriteString(cross(plotX(min(m.ended, timelineTo)), lane))
			continue
		case l.oldPid:
			which = 0
		}
		from, to := plotX(max(m.began, timelineFrom)), plotX(min(m.ended, timelineTo))
		fmt.Fprintf(&bars[which], "M%.1f %gh%.1f", from, lane, max(1.4, to-from))
		if m.ended <= timelineTo {
			fmt.Fprintf(&dots[which], "M%.1f %.1fh0", to, y(m.ended-m.began))
		}
	}
	for i, class := range []string{"old", "new"} {
		fmt.Fprintf(b, `<path class="lane %s" d="%s"/>`+"\n", class, bars[i].String())
		fmt.Fprintf(b, `<path class="dot %s" d="%s"/>`+"\n", class, dots[i].String())
	}
	fmt.Fprintf(b, `<path class="lost" d="%s"/>`+"\n", lost.String())

	when := func(t time.Duration, class, anchor string, dx float64, words string) {
		fmt.Fprintf(b, `<path class="when %s" d="M%.1f %.0fV%.0fM%.1f %.0fV%.0f"/>`, class, plotX(t), lanes-18, lanes+lanesHeight, plotX(t), times, bottom)
		fmt.Fprintf(b, `<text class="text" text-anchor="%s" x="%.1f" y="%.0f">%s</text>`+"\n", anchor, plotX(t)+dx, lanes-7, words)
	}
	when(0, "", "end", -6, "signal")
	gone := min(l.gone, timelineTo)
	if gone < timelineTo/2 {
		when(gone, "gone", "start", 6, "old process ended")
	} else {
		when(gone, "gone", "end", -6, "old process ended")
	}
}

func plotX(t time.Duration) float64 {
	return plotLeft + (plotRight-plotLeft)*float64(t-timelineFrom)/float64(timelineTo-timelineFrom)
}

// cross is the path of a lost request's mark.
func cross(x, y float64) string { return fmt.Sprintf("M%.1f %.1fl7 7m0-7l-7 7", x-3.5, y-3.5) }

func text(b *strings.Builder, x, y float64, class, words string) {
	fmt.Fprintf(b, `<text class="%s" x="%.0f" y="%.0f">%s</text>`+"\n", class, x, y, words)
}
