package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestPercentileIsAMeasuredValue(t *testing.T) {
	var hundred []time.Duration
	for i := 1; i <= 100; i++ {
		hundred = append(hundred, time.Duration(i))
	}
	for _, test := range []struct {
		sorted []time.Duration
		p      float64
		want   time.Duration
	}{
		{nil, 50, 0},
		{[]time.Duration{7}, 0, 7},
		{[]time.Duration{7}, 50, 7},
		{[]time.Duration{7}, 100, 7},
		{[]time.Duration{1, 2, 3}, 50, 2},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 99.5, 100},
		{hundred, 100, 100},
	} {
		if got := percentile(test.sorted, test.p); got != test.want {
			t.Errorf("percentile %v of %d values = %d, want %d", test.p, len(test.sorted), got, test.want)
		}
	}
}

func TestMillisHaveNoExponent(t *testing.T) {
	for m, want := range map[millis]string{0.071: "0.071", 1.2345: "1.23", 99.96: "100", 1060: "1060", 12_345.6: "12346"} {
		if got := m.String(); got != want {
			t.Errorf("%f is shown as %s, want %s", float64(m), got, want)
		}
	}
}

func TestPhaseOfARequest(t *testing.T) {
	const signal, gone, second = time.Second, 2 * time.Second, 3 * time.Second
	episodes := []episode{{signal, gone}, {second, never}}
	for _, test := range []struct {
		name         string
		began, ended time.Duration
		want         string
	}{
		{"no restart yet", 1, 2, "before"},
		{"ended just before the signal", signal - 2, signal - 1, "before"},
		{"under way at the signal", signal - 1, signal + 1, "during"},
		{"began during the restart and took long", signal + window, second - 1, "during"},
		{"the old process was there", signal + window + 1, signal + window + 2, "drain"},
		{"the old process was still there", gone - 1, gone + 1, "drain"},
		{"began later", gone + 1, gone + 2, "after"},
		{"under way at the next signal", gone + 1, second, "during"},
		{"nobody has waited for the old process", second + window + 1, time.Hour, "drain"},
	} {
		p := phasesOf([]sample{{test.began, test.ended}}, episodes)
		got := map[string]int{"before": len(p.before), "during": len(p.during), "drain": len(p.drain), "after": len(p.after)}
		if got[test.want] != 1 || got["before"]+got["during"]+got["drain"]+got["after"] != 1 {
			t.Errorf("%s: counted as %v, want %s", test.name, got, test.want)
		}
	}
	if p := phasesOf([]sample{{1, 2}}, nil); len(p.before) != 1 {
		t.Error("without a restart a request is not counted as before one")
	}
}

// Each restart is compared with the time before it, and one that follows too soon with none.
func TestRatioIsOfNeighbours(t *testing.T) {
	const ms = time.Millisecond
	var samples []sample
	load := func(from, to, took time.Duration) {
		for at := from; at < to; at += ms {
			samples = append(samples, sample{at, at + took})
		}
	}
	// The machine becomes ever slower; a restart costs half as much again.
	var episodes []episode
	for n := range time.Duration(7) {
		signal, took := (n+1)*1000*ms, (n+1)*4*ms
		episodes = append(episodes, episode{signal, signal + 300*ms})
		load(signal-500*ms, signal-took, took)
		load(signal, signal+200*ms, took+took/2)
		load(signal+201*ms, signal+300*ms, 200*ms) // the drain, which is slow
	}
	episodes = append(episodes, episode{7350 * ms, 7400 * ms}) // has no calm time before it
	load(7350*ms, 7550*ms, 999*ms)
	want := estimate{1.5, 1.5, 1.5}
	if got := phasesOf(samples, episodes).ratio; got != want {
		t.Errorf("ratio %v, want %v", got, want)
	}
	if got := phasesOf(samples, episodes[:5]).ratio; got != (estimate{}) {
		t.Errorf("ratio %v of five restarts", got)
	}
	if got := phasesOf(samples[:50], episodes).ratio; got != (estimate{}) {
		t.Errorf("ratio %v of too few requests", got)
	}
}

// A restart that changes nothing has the ratio 1, however long requests take.
func TestRatioOfNothing(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, mean := range []float64{0.3, 3, 12} { // ms
		var samples []sample
		var episodes []episode
		for n := range time.Duration(60) {
			signal := (n + 1) * time.Second
			episodes = append(episodes, episode{signal, signal + 20*time.Millisecond})
		}
		for range 32 {
			for at := time.Duration(0); at < 62*time.Second; {
				took := time.Duration(mean * math.Exp(rnd.NormFloat64()) * 1e6)
				samples = append(samples, sample{at, at + took})
				at += took + 5*time.Millisecond
			}
		}
		if got := phasesOf(samples, episodes).ratio; got.Low > 1.05 || got.High < 0.95 {
			t.Errorf("requests of about %v ms: ratio %v, want 1", mean, got)
		}
	}
}

func TestEstimate(t *testing.T) {
	// For 10 values the interval from the 2nd to the 9th holds the median with 97.9 %, that from the 3rd to the 8th
	// only with 89.1 %.
	var ten []float64
	for i := 10; i >= 1; i-- {
		ten = append(ten, float64(i))
	}
	if got, want := estimateOf(ten), (estimate{5.5, 2, 9}); got != want {
		t.Errorf("estimate of 1 to 10 = %v, want %v", got, want)
	}
	if got, want := estimateOf([]float64{3, 1, 2}), (estimate{2, 1, 3}); got != want {
		t.Errorf("estimate of three values = %v, want all of their range, %v", got, want)
	}
	if !slices.Equal(ten[:2], []float64{10, 9}) {
		t.Error("the measurements were reordered")
	}
	many := make([]float64, 3000)
	for i := range many {
		many[i] = float64(i)
	}
	// The interval of a large sample is about 0.98 times the root of n to either side.
	if got := estimateOf(many); math.Abs(got.High-got.Median-0.98*math.Sqrt(3000)) > 3 {
		t.Errorf("estimate of 3000 values = %v", got)
	}
}

func TestSummaryIsInMilliseconds(t *testing.T) {
	got := summarize([]time.Duration{3 * time.Millisecond, 1500 * time.Microsecond, time.Second})
	if want := (summary{3, 1000, 1000}); got != want {
		t.Errorf("summary %v, want %v", got, want)
	}
}

func TestLineThroughTimes(t *testing.T) {
	var all []growth
	for _, n := range []int{100, 200, 400, 800} {
		all = append(all, growth{N: n, Gone: 8 + millis(n)*0.013})
	}
	if fixed, each := lineOf(all); math.Abs(float64(fixed)-8) > 1e-9 || math.Abs(float64(each)-0.013) > 1e-9 {
		t.Errorf("from %v ms, %v ms each; want 8 and 0.013", float64(fixed), float64(each))
	}
}
