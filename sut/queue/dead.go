package queue

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/stagebench/stagebench/sut/photos"
)

// DeadLetter is a job that was given up.
type DeadLetter struct {
	Photo  photos.ID `json:"photo"`
	Reason string    `json:"reason"`
	AtUS   int64     `json:"at_us"`
}

// bury stores a dead letter.
func (q *Queue) bury(ctx context.Context, photo int64, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, ackWait)
	defer cancel()
	_, err := q.stream.Publish(ctx, deadLetters+strconv.FormatInt(photo, 10), []byte(reason),
		jetstream.WithExpectStream(deadStream))
	return err
}

// DeadLetters returns the dead letters, the oldest first, and at most limit.
func (q *Queue) DeadLetters(ctx context.Context, limit int) ([]DeadLetter, error) {
	dead, err := q.stream.Stream(ctx, deadStream)
	if err != nil {
		return nil, fmt.Errorf("queue: dead letters: %w", err)
	}
	state := dead.CachedInfo().State
	letters := []DeadLetter{}
	for n := state.FirstSeq; n <= state.LastSeq && len(letters) < limit; n++ {
		message, err := dead.GetMsg(ctx, n)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // a later one of the same photo has replaced it
		}
		if err != nil {
			return nil, fmt.Errorf("queue: dead letter %d: %w", n, err)
		}
		id, err := strconv.ParseInt(strings.TrimPrefix(message.Subject, deadLetters), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("queue: dead letter %d: %w", n, err)
		}
		letters = append(letters, DeadLetter{
			Photo: photos.ID(id), Reason: string(message.Data), AtUS: message.Time.Truncate(time.Microsecond).UnixMicro(),
		})
	}
	return letters, nil
}
