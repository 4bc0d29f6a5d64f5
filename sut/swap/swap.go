// Package swap holds a value that can be replaced while it is in use, such as the
// hosts that a client calls. A user keeps the same value until it is done. The caller
// of Replace can wait until nobody uses an earlier value.
//
// All methods may be called concurrently.
package swap

import (
	"context"
	"sync"
)

// Value holds a T. The T must be replaced and never modified. The zero Value holds the
// zero T.
type Value[T any] struct {
	mu     sync.RWMutex
	now    *generation[T]
	before chan struct{} // closed when nobody uses an earlier value; nil = no earlier value
}

// generation is one value and its users.
type generation[T any] struct {
	value T
	users sync.WaitGroup
}

// Use returns the value. The caller must call done exactly once, when it no longer
// uses the value.
func (v *Value[T]) Use() (value T, done func()) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.now == nil {
		return value, func() {}
	}
	v.now.users.Add(1)
	return v.now.value, v.now.users.Done
}

// Replace makes next the value. The returned function waits until nobody uses an earlier
// value, or returns the error of its context. Replace calls retire with the previous
// value, on another goroutine, once nobody uses that or an earlier value.
func (v *Value[T]) Replace(next T, retire func(before T)) (wait func(context.Context) error) {
	over := make(chan struct{})
	v.mu.Lock()
	old, before := v.now, v.before
	v.now, v.before = &generation[T]{value: next}, over
	v.mu.Unlock()
	go func() {
		defer close(over)
		if before != nil {
			<-before
		}
		if old != nil {
			old.users.Wait()
			retire(old.value)
		}
	}()
	return func(ctx context.Context) error {
		select {
		case <-over:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
