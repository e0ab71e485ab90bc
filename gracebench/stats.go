package main

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"
)

// window is how long after a restart's signal a request counts as one during the restart.
const window = 200 * time.Millisecond

// A sample is a request.
type sample struct {
	began, ended time.Duration // now() at these times
}

// An episode is a restart as clients see it.
type episode struct {
	signal time.Duration // now() when it was sent
	gone   time.Duration // now() when the end of the old process was seen; never, if it was not waited for
}

const never = time.Duration(math.MaxInt64)

// phases are response times, by when the requests were under way.
type phases struct {
	before, during, drain, after []time.Duration
	ratio                        estimate // of the 99th percentile, see ratioOf
}

// phasesOf takes the samples and the episodes, which are in the order of their signals, apart. Of the episodes before a
// request's end only the last one matters: a request that was under way after an earlier one and still is after this one
// was so during both.
func phasesOf(samples []sample, episodes []episode) phases {
	var p phases
	calm, restarting := make([][]time.Duration, len(episodes)), make([][]time.Duration, len(episodes))
	slices.SortFunc(samples, func(x, y sample) int { return cmp.Compare(x.ended, y.ended) })
	next := 0 // the episode after the one that matters
	for _, s := range samples {
		for next < len(episodes) && episodes[next].signal <= s.ended {
			next++
		}
		last := episode{signal: -never} // there was none
		if next > 0 {
			last = episodes[next-1]
		}
		took := s.ended - s.began
		switch {
		case next == 0:
			p.before = append(p.before, took)
		case s.began <= last.signal+window:
			p.during = append(p.during, took)
			if s.ended < last.signal+window { // as the calm ones end before the signal
				restarting[next-1] = append(restarting[next-1], took)
			}
			continue
		case s.began <= last.gone:
			p.drain = append(p.drain, took)
			continue
		default:
			p.after = append(p.after, took)
		}
		if next < len(episodes) {
			// The time before a signal is calm if the restart before is over.
			if from := episodes[next].signal - window; s.ended >= from && last.gone <= from && last.signal+window <= from {
				calm[next] = append(calm[next], took)
			}
		}
	}
	p.ratio = ratioOf(calm, restarting)
	return p
}

// ratioOf returns the 99th percentile of the requests during a restart, as a multiple of that of those before it: what
// disturbs a machine comes and goes, and hardly differs within half a second. Episodes without enough requests before
// or during are left out; of fewer than six ratios there is no estimate, since they have no interval of 95 %.
func ratioOf(calm, restarting [][]time.Duration) estimate {
	const enough = 100
	var ratios []float64
	for i := range calm {
		if len(calm[i]) >= enough && len(restarting[i]) >= enough {
			ratios = append(ratios, float64(summarize(restarting[i]).P99/summarize(calm[i]).P99))
		}
	}
	if len(ratios) < 6 {
		return estimate{}
	}
	return estimateOf(ratios)
}

// summary is what is shown of many durations.
type summary struct {
	P50, P99, Max millis
}

// millis is a duration that is shown, and written as JSON, in milliseconds.
type millis float64

// String gives three digits, or all before the point.
func (m millis) String() string {
	if m >= 100 {
		return strconv.FormatFloat(float64(m), 'f', 0, 64)
	}
	return strconv.FormatFloat(float64(m), 'g', 3, 64)
}

func summarize(all []time.Duration) summary {
	slices.Sort(all)
	return summary{
		P50: inMillis(percentile(all, 50)),
		P99: inMillis(percentile(all, 99)),
		Max: inMillis(percentile(all, 100)),
	}
}

func inMillis(d time.Duration) millis {
	return millis(math.Round(d.Seconds()*1e6) / 1e3)
}

// percentile returns the smallest of the sorted durations that at least p percent of them do not exceed.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// An estimate is the median of measurements, and the interval that holds the true median with 95 % confidence.
type estimate struct {
	Median, Low, High float64
}

// estimateOf assumes nothing about how the measurements are distributed: the ends of the interval are order statistics,
// by the binomial distribution of how many measurements lie below the median.
func estimateOf(values []float64) estimate {
	n := len(values)
	if n == 0 {
		return estimate{}
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	e := estimate{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Low: sorted[0], High: sorted[n-1]}
	below := 0.0 // probability that at most k measurements lie below the median
	for k := range n / 2 {
		below += math.Exp(logChoose(n, k) - float64(n)*math.Ln2)
		if below > 0.025 {
			break
		}
		e.Low, e.High = sorted[k], sorted[n-1-k]
	}
	return e
}

// logChoose returns the logarithm of the number of ways to choose k of n.
func logChoose(n, k int) float64 {
	lgamma := func(i int) float64 {
		v, _ := math.Lgamma(float64(i))
		return v
	}
	return lgamma(n+1) - lgamma(k+1) - lgamma(n-k+1)
}
