package graceful

import (
	"cmp"
	"slices"
	"time"
)

// A waitList holds connections that wait for a time, in the order of these
// times. Most of a list wait equally long, so whoever begins to wait later
// waits until later, and its place is at the end.
type waitList struct {
	list   []waiting
	head   int
	sorted bool // false before the first sort: until then push appends
}

type waiting struct {
	c   *conn
	w   connWord      // as it was when the wait began
	due time.Duration // since manager.began
}

// push adds an entry in its place, which is the end but for a connection whose
// wait is shorter than the others', or began before it was seen.
func (l *waitList) push(e waiting) {
	at := len(l.list)
	for l.sorted && at > l.head && l.list[at-1].due > e.due {
		at--
	}
	if at == l.head && l.head > 0 {
		l.head--
		l.list[l.head] = e
		return
	}
	l.list = slices.Insert(l.list, at, e)
}

func (l *waitList) sort() {
	l.sorted = true
	slices.SortFunc(l.list[l.head:], func(a, b waiting) int { return cmp.Compare(a.due, b.due) })
}

// popUntil returns the first entry if it is due.
func (l *waitList) popUntil(now time.Duration) (waiting, bool) {
	if l.head == len(l.list) || l.list[l.head].due > now {
		return waiting{}, false
	}
	e := l.list[l.head]
	l.list[l.head] = waiting{}
	l.head++
	if l.head == len(l.list) {
		l.list, l.head = l.list[:0], 0
	}
	return e, true
}

// next returns when the first entry is due, and false if there is none.
func (l *waitList) next() (time.Duration, bool) {
	if l.head == len(l.list) {
		return 0, false
	}
	return l.list[l.head].due, true
}

// advance changes all entries and sorts them again.
func (l *waitList) advance(f func(*waiting)) {
	for i := l.head; i < len(l.list); i++ {
		f(&l.list[i])
	}
	l.sort()
}
