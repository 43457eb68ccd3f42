/* Foundation.h - what metal.m uses of Foundation, declared from Apple's documentation, so that
 * clang can check its syntax and the selectors it sends where there is no SDK. */
#ifndef FOUNDATION_STUB
#define FOUNDATION_STUB

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef signed char BOOL;
#define YES ((BOOL)1)
#define NO ((BOOL)0)
#define nil ((void *)0)
typedef long NSInteger;
typedef unsigned long NSUInteger;

typedef struct {
    unsigned long state;
    id __unsafe_unretained *itemsPtr;
    unsigned long *mutationsPtr;
    unsigned long extra[5];
} NSFastEnumerationState;

@protocol NSObject
@end
@protocol NSCopying
@end
@protocol NSFastEnumeration
- (NSUInteger)countByEnumeratingWithState:(NSFastEnumerationState *)state
                                  objects:(id __unsafe_unretained[])buffer
                                    count:(NSUInteger)len;
@end

__attribute__((objc_root_class)) @interface NSObject <NSObject>
+ (instancetype)new;
+ (instancetype)alloc;
- (instancetype)init;
- (id)copy;
@end

@class NSString;

@interface NSError : NSObject
@property(readonly) NSInteger code;
@property(readonly, copy) NSString *localizedDescription;
@end

typedef NSUInteger NSStringEncoding;
enum { NSUTF8StringEncoding = 4 };

@interface NSString : NSObject <NSCopying>
@property(readonly) const char *UTF8String;
- (instancetype)initWithBytes:(const void *)bytes
                       length:(NSUInteger)len
                     encoding:(NSStringEncoding)encoding;
+ (instancetype)stringWithFormat:(NSString *)format, ...;
- (NSString *)stringByAppendingPathComponent:(NSString *)str;
@end
@interface NSConstantString : NSString
@end

@interface NSNumber : NSObject
@property(readonly, copy) NSString *stringValue;
+ (NSNumber *)numberWithInt:(int)value;
@end

@interface NSURL : NSObject
@property(readonly) const char *fileSystemRepresentation;
+ (NSURL *)fileURLWithPath:(NSString *)path;
- (NSURL *)URLByAppendingPathExtension:(NSString *)pathExtension;
@end

@interface NSArray<__covariant ObjectType> : NSObject <NSFastEnumeration>
@property(readonly) ObjectType firstObject;
+ (instancetype)arrayWithObjects:(const ObjectType[])objects count:(NSUInteger)cnt;
@end
@interface NSMutableArray<ObjectType> : NSArray <ObjectType>
- (void)addObject:(ObjectType)anObject;
- (void)removeAllObjects;
- (void)removeObjectIdenticalTo:(ObjectType)anObject;
@end

@interface NSDictionary<KeyType, ObjectType> : NSObject
@end

@interface NSFileManager : NSObject
@property(class, readonly, strong) NSFileManager *defaultManager;
- (BOOL)createDirectoryAtPath:(NSString *)path
    withIntermediateDirectories:(BOOL)createIntermediates
                     attributes:(NSDictionary *)attributes
                          error:(NSError **)error;
@end

@interface NSProcessInfo : NSObject
@property(class, readonly, strong) NSProcessInfo *processInfo;
@property(readonly, copy) NSString *operatingSystemVersionString;
@end

typedef NSUInteger NSSearchPathDirectory;
enum { NSCachesDirectory = 13 };
typedef NSUInteger NSSearchPathDomainMask;
enum { NSUserDomainMask = 1 };
NSArray<NSString *> *NSSearchPathForDirectoriesInDomains(NSSearchPathDirectory directory,
                                                         NSSearchPathDomainMask domainMask,
                                                         BOOL expandTilde);

#endif
